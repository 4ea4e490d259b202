//! `POST /generate/text`: the request body and its checks.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{self, FIXED};
use super::common::{Common, Plan, Priority, Returns, Served, StreamMode, exactly_one, token_ids};
use super::picture::PictureFormat;
use super::reply::TextReply;
use super::run;
use super::sampler::{self, SamplerSpec};
use super::template::Template;
use super::{image, upload};
use crate::api::defaults::TextDefaults;
use crate::api::error::{ApiError, Problem};
use crate::api::extract::Json;
use crate::api::limits::{ApiLimits, fixed};
use crate::api::state::App;
use crate::engine::job::{self, Fidelity, Prompt, Task, TextParams};

/// A text request. Exactly one of `prompt`, `messages`, `template`, `prompt_token_ids`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"prompt": "Tom has 3 apples. He buys 4 more. How many apples does he have now?", "max_tokens": 32, "steps": 16}))]
pub(crate) struct TextRequest {
    /// Text to continue.
    pub prompt: Option<String>,
    /// A conversation to answer, laid out by the model's chat template; the built-in model reads the contents line by line.
    pub messages: Option<Vec<Message>>,
    /// Text with holes to fill.
    pub template: Option<Template>,
    /// Raw ids, used as they are.
    pub prompt_token_ids: Option<Vec<u32>>,
    /// A picture that the text is about: a PNG, JPEG or WebP file in base64, at most 4096×4096 pixels. For models that look
    /// at pictures; not with `template`.
    pub image: Option<String>,
    /// Rows and columns of the tokens that `image` is read as. Absent: the grid that the model draws.
    pub grid: Option<[u64; 2]>,
    /// Number of completions.
    pub n: Option<u64>,
    /// Length of the generated canvas; not with `template`, whose holes say it.
    pub max_tokens: Option<u64>,
    /// Forwards over the whole canvas; with SDAR's samplers those of one block, at most.
    pub steps: Option<u64>,
    /// Length of a block; blocks are denoised left to right. Absent: see `/info`; the whole canvas for Dream's samplers,
    /// the model's own blocks for SDAR's.
    pub block_length: Option<u64>,
    /// 0 takes the most likely token.
    pub temperature: Option<f64>,
    /// Nucleus in (0, 1]; 1 is off.
    pub top_p: Option<f64>,
    /// 0 is off.
    pub top_k: Option<u64>,
    /// Which positions commit at a step.
    pub sampler: Option<SamplerSpec>,
    /// w in (1+w)·conditional − w·unconditional; 0 is off.
    pub guidance_scale: Option<f64>,
    /// What guidance steers away from.
    pub negative_prompt: Option<String>,
    /// Strings that end the text.
    pub stop: Option<Stop>,
    /// End when EOS and everything before it are committed.
    pub stop_at_eos: Option<bool>,
    /// Same seed, same text. Random when absent; echoed.
    pub seed: Option<u64>,
    /// `exact`, or an approximation by keys and values that are kept within a block (Fast-dLLM): `prefix` keeps those before
    /// it, `dual` also those after it. Approximations are faster and give other texts; echoed in `params`.
    pub fidelity: Option<String>,
    /// With `prefix` or `dual`, so many positions on each side of the block are computed anew at each step, too. Default 0.
    pub vicinity: Option<u64>,
    /// `name@version`, when only that will do.
    pub adapter: Option<String>,
    /// Scheduling class.
    pub priority: Option<Priority>,
    /// When it is over, the rest is committed at once.
    pub deadline_ms: Option<u64>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// What the events carry.
    pub stream_mode: Option<StreamMode>,
    /// The same as `logprobs` in `return`.
    pub logprobs: Option<bool>,
    /// Optional parts of the reply.
    #[serde(rename = "return")]
    pub returns: Option<Vec<TextPart>>,
    /// Keep the completion, so that it can be read and rated. Default true.
    pub store: Option<bool>,
    /// Id of the end user; only a keyed hash is kept.
    pub user: Option<String>,
    /// Own key-value pairs, kept with the completion.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A message of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// One stop string or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(crate) enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// An optional part of a text reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TextPart {
    /// Generated ids.
    TokenIds,
    /// Step at which each was committed; −1 when it was given.
    CommitSteps,
    /// Log-probability of each when it was committed.
    Logprobs,
}

/// Completes a text.
///
/// With `"stream": true` the reply is `text/event-stream`: `queued`, `step`, `block`, then `done` (the plain reply) or
/// `error` (a problem).
#[utoipa::path(post, path = "/generate/text", tag = "generate", request_body = TextRequest, responses(
    (status = 200, description = "The completions.", body = TextReply),
    (status = 400, description = "A field is wrong or outside its bounds.", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "The adapter is not served.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The body is too large.", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "Full or shutting down; see Retry-After.", body = Problem, content_type = "application/problem+json"),
))]
pub(in crate::api) async fn generate_text(
    State(app): State<App>,
    Json { mut value, .. }: Json<TextRequest>,
) -> Result<Response, ApiError> {
    let served = Served::of(&app.engine);
    let grid = value.looked_at(&served, &app.limits)?;
    let image = value.image.take();
    let mut plan = value.plan(&served, &app.limits, &app.defaults.text)?;
    // Reading a picture costs the most, so everything else is checked first.
    if let (Some(image), Some(grid)) = (image, grid) {
        let codes = upload::codes(&app, image, grid).await?;
        plan.request.prompt = Prompt::About { codes, prompt: Box::new(plan.request.prompt) };
    }
    run::respond(app, plan, None).await
}

impl TextRequest {
    /// The grid that the picture is read as; `None` without one.
    fn looked_at(&self, served: &Served, limits: &ApiLimits) -> Result<Option<(usize, usize)>, ApiError> {
        let refuse = |field: &str, message: &str, hint: &str| Err(ApiError::invalid(field, message, hint));
        match (&self.image, served.image.filter(|_| served.looks)) {
            (None, _) if self.grid.is_some() => refuse("grid", "has no meaning without image", "leave it out"),
            (None, _) => Ok(None),
            (Some(_), None) => {
                refuse("image", "this model looks at no pictures", "leave it out, or serve one that does")
            }
            (Some(_), Some(_)) if self.template.is_some() => {
                refuse("image", "cannot be sent together with template", "ask with prompt or messages")
            }
            (Some(_), Some((drawn, _))) => image::grid(self.grid, drawn, limits).map(Some),
        }
    }

    /// Checks every other field; pure.
    pub(in crate::api) fn plan(
        mut self,
        served: &Served,
        limits: &ApiLimits,
        defaults: &TextDefaults,
    ) -> Result<Plan, ApiError> {
        let (prompt, text, holes) = self.take_prompt(served, limits)?;
        let params = self.params(holes, served, limits, defaults)?;
        let parts = self.returns.take().unwrap_or_default();
        let returns = Returns {
            tokens: parts.contains(&TextPart::TokenIds),
            commit_steps: parts.contains(&TextPart::CommitSteps),
            logprobs: parts.contains(&TextPart::Logprobs) || self.logprobs.unwrap_or(false),
        };
        let stream = self.stream.unwrap_or(false).then(|| self.stream_mode.unwrap_or_default());
        let common = Common {
            n: self.n,
            seed: self.seed,
            negative_prompt: self.negative_prompt,
            adapter: self.adapter,
            priority: self.priority,
            deadline_ms: self.deadline_ms,
            store: self.store,
            user: self.user,
            metadata: self.metadata,
        };
        let (request, log) = common.plan(prompt, text, Task::Text(params), served, limits)?;
        Ok(Plan { request, stream, log, returns, format: PictureFormat::Png })
    }

    /// The prompt, what the log keeps of it, and the tokens of a template's holes.
    fn take_prompt(
        &mut self,
        served: &Served,
        limits: &ApiLimits,
    ) -> Result<(Prompt, Option<String>, Option<usize>), ApiError> {
        exactly_one(&[
            ("prompt", self.prompt.is_some()),
            ("messages", self.messages.is_some()),
            ("template", self.template.is_some()),
            ("prompt_token_ids", self.prompt_token_ids.is_some()),
        ])?;
        if let Some(ids) = self.prompt_token_ids.take() {
            token_ids(&ids, served, limits)?;
            return Ok((Prompt::Ids(ids), None, None));
        }
        if let Some(template) = self.template.take() {
            let text = template.rendered();
            let (parts, holes) = template.parts(limits)?;
            return Ok((Prompt::Template(parts), Some(text), Some(holes)));
        }
        let (field, text, prompt) = match self.messages.take() {
            Some(messages) => {
                let text = conversation(&messages)?;
                let said = messages.into_iter().map(|Message { role, content }| job::Message { role, content });
                ("messages", text, Prompt::Messages(said.collect()))
            }
            None => {
                let text = self.prompt.take().unwrap_or_default();
                ("prompt", text.clone(), Prompt::Text(text))
            }
        };
        check::chars(field, &text, limits.max_prompt_chars, &check::flag("max_prompt_chars"))?;
        Ok((prompt, Some(text), None))
    }

    fn params(
        &self,
        holes: Option<usize>,
        served: &Served,
        limits: &ApiLimits,
        defaults: &TextDefaults,
    ) -> Result<TextParams, ApiError> {
        let max_tokens = self.canvas(holes, limits, defaults)?;
        let (sampler, ends) = sampler::text(self.sampler.as_ref(), served.block.is_some(), defaults)?;
        let fidelity = self.fidelity.as_deref().unwrap_or("exact");
        let block_length = match (self.block_length, holes) {
            (Some(given), _) => check::size("block_length", given, 1, limits.max_tokens, &check::flag("max_tokens"))?,
            (None, _) if sampler.per_block() => served.block.unwrap_or(defaults.block_length),
            (None, Some(_)) => served.max_positions, // the canvas is longer than its holes: one block, whatever its length
            (None, None) if sampler.spans_the_canvas() => max_tokens,
            (None, None) => default_block(max_tokens, self.steps, defaults),
        };
        let steps = self.steps.unwrap_or_else(|| match sampler.per_block() {
            true => block_length as u64,
            false => default_steps(max_tokens, block_length, limits, defaults),
        });
        let temperature = self.temperature.unwrap_or(defaults.temperature);
        let guidance = self.guidance_scale.unwrap_or(defaults.guidance_scale);
        let top_k = self.top_k.unwrap_or(defaults.top_k as u64);
        Ok(TextParams {
            max_tokens,
            steps: check::size("steps", steps, 1, limits.max_steps, &check::flag("max_steps"))?,
            block_length,
            temperature: check::number("temperature", temperature, 0.0, fixed::TEMPERATURE)?,
            top_p: check::probability("top_p", self.top_p.unwrap_or(defaults.top_p))?,
            top_k: check::integer("top_k", top_k, 0, fixed::TOP_K, FIXED)? as usize,
            sampler,
            ends,
            guidance_scale: check::number("guidance_scale", guidance, 0.0, fixed::GUIDANCE)?,
            stop_at_eos: self.stop_at_eos.unwrap_or(defaults.stop_at_eos),
            fidelity: check::choice("fidelity", fidelity, &FIDELITIES)?,
            vicinity: check::integer("vicinity", self.vicinity.unwrap_or(0), 0, fixed::VICINITY, FIXED)? as usize,
            stop: stops(self.stop.as_ref())?,
        })
    }

    /// Tokens to generate: the holes', or `max_tokens`.
    fn canvas(&self, holes: Option<usize>, limits: &ApiLimits, defaults: &TextDefaults) -> Result<usize, ApiError> {
        match (holes, self.max_tokens) {
            (Some(_), Some(_)) => Err(ApiError::invalid(
                "max_tokens",
                "cannot be sent together with template",
                "leave it out: the holes say how many tokens are generated",
            )),
            (Some(holes), None) => Ok(holes),
            (None, given) => {
                let tokens = given.unwrap_or(defaults.max_tokens.min(limits.max_tokens) as u64);
                check::size("max_tokens", tokens, 1, limits.max_tokens, &check::flag("max_tokens"))
            }
        }
    }
}

const FIDELITIES: [(&str, Fidelity); 3] =
    [("exact", Fidelity::Exact), ("prefix", Fidelity::Prefix), ("dual", Fidelity::Dual)];

/// Blocks must divide the canvas, and the steps must divide among the blocks. The default is the longest such block
/// from half the usual length up to it, or else a single block, which always fits.
fn default_block(max_tokens: usize, steps: Option<u64>, defaults: &TextDefaults) -> usize {
    let usual = defaults.block_length.clamp(1, max_tokens);
    let fits = |block: &usize| {
        let blocks = (max_tokens / block) as u64;
        max_tokens.is_multiple_of(*block) && steps.is_none_or(|steps| steps.is_multiple_of(blocks))
    };
    (usual.div_ceil(2)..=usual).rev().find(fits).unwrap_or(max_tokens)
}

/// The usual pace, the same number of steps for every block.
fn default_steps(max_tokens: usize, block_length: usize, limits: &ApiLimits, defaults: &TextDefaults) -> u64 {
    let blocks = max_tokens.div_ceil(block_length);
    let steps = (max_tokens / defaults.tokens_per_step.max(1)).min(limits.max_steps);
    ((steps / blocks).max(1) * blocks) as u64
}

/// What the log keeps of a conversation, checked.
fn conversation(messages: &[Message]) -> Result<String, ApiError> {
    check::count("messages", messages.len(), fixed::MESSAGES, FIXED)?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "is empty", "send at least one message"));
    }
    for (index, message) in messages.iter().enumerate() {
        let roles = [("system", ()), ("user", ()), ("assistant", ())];
        check::choice(&format!("messages[{index}].role"), &message.role, &roles)?;
    }
    Ok(messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n"))
}

fn stops(stop: Option<&Stop>) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => return Ok(Vec::new()),
        Some(Stop::One(one)) => vec![one.clone()],
        Some(Stop::Many(many)) => many.clone(),
    };
    check::count("stop", stops.len(), fixed::STOPS, FIXED)?;
    for stop in &stops {
        check::chars("stop", stop, fixed::STOP_CHARS, FIXED)?;
        if stop.is_empty() {
            return Err(ApiError::invalid("stop", "has an empty string", "an empty string would end every text"));
        }
    }
    Ok(stops)
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
