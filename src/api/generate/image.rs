//! `POST /generate/image`: the request body and its checks.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check;
use super::common::{Common, Plan, Priority, Returns, Served, StreamMode, exactly_one, token_ids};
use super::picture::PictureFormat;
use super::reply::ImageReply;
use super::run;
use super::sampler::{self, SamplerSpec};
use super::upload;
use crate::api::defaults::ImageDefaults;
use crate::api::error::{ApiError, Problem};
use crate::api::extract::Json;
use crate::api::limits::{ApiLimits, fixed};
use crate::api::state::App;
use crate::engine::job::{ImageParams, Prompt, Schedule, Task};

/// An image request. Exactly one of `prompt`, `prompt_token_ids`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"prompt": "a yellow circle above a green triangle", "seed": 3}))]
pub(crate) struct ImageRequest {
    /// What to draw.
    pub prompt: Option<String>,
    /// The same as raw text ids, before any layout.
    pub prompt_token_ids: Option<Vec<u32>>,
    /// What guidance steers away from.
    pub negative_prompt: Option<String>,
    /// Number of images.
    pub n: Option<u64>,
    /// Forwards.
    pub steps: Option<u64>,
    /// w in (1+w)·conditional − w·unconditional; 0 is off.
    pub guidance_scale: Option<f64>,
    /// `cosine`, `linear`, `pow2` or `sigmoid`.
    pub schedule: Option<String>,
    /// maskgit: noise of the reveal order; emerge: temperature of the token draw. 0 is greedy.
    pub temperature: Option<f64>,
    /// Temperature of the token draw. Absent: the default of `maskgit` (see `/info`); `temperature` for `emerge`; 0 when
    /// `temperature` is 0.
    pub token_temperature: Option<f64>,
    /// Which cells commit at a step.
    pub sampler: Option<SamplerSpec>,
    /// Same seed, same image. Random when absent; echoed.
    pub seed: Option<u64>,
    /// Known codes, row by row, null where to draw.
    pub initial_codes: Option<Vec<Option<u32>>>,
    /// A picture to draw a part of anew: a PNG, JPEG or WebP file in base64, at most 4096×4096 pixels, of the grid's
    /// proportions. With `mask`, instead of `initial_codes`.
    pub image: Option<String>,
    /// Which part: a picture of the same size, white where to draw. Every token with a white pixel is drawn anew.
    pub mask: Option<String>,
    /// Rows and columns of the token grid.
    pub grid: Option<[u64; 2]>,
    /// Encoding of the pictures.
    pub format: Option<PictureFormat>,
    /// `exact`.
    pub fidelity: Option<String>,
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
    /// A preview every so many steps of a stream; 0 for none.
    pub preview_every: Option<u64>,
    /// Optional parts of the reply.
    #[serde(rename = "return")]
    pub returns: Option<Vec<ImagePart>>,
    /// Keep the image, so that it can be seen and rated again. Default true.
    pub store: Option<bool>,
    /// Id of the end user; only a keyed hash is kept.
    pub user: Option<String>,
    /// Own key-value pairs, kept with the image.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// An optional part of an image reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ImagePart {
    /// Codes, row by row.
    Codes,
    /// Step at which each was committed; −1 when it was given.
    CommitSteps,
    /// Log-probability of each when it was committed.
    Logprobs,
}

/// Draws images.
///
/// With `Accept: image/png` (or jpeg, webp) and `n` = 1 the reply is the picture itself, with headers
/// `x-completion-id` and `x-seed`. With `"stream": true` it is `text/event-stream`: `queued`, `step`, `preview`, then
/// `done` (the plain reply) or `error` (a problem).
#[utoipa::path(post, path = "/generate/image", tag = "generate", request_body = ImageRequest, responses(
    (status = 200, description = "The images.", body = ImageReply),
    (status = 400, description = "A field is wrong or outside its bounds.", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "The adapter is not served.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "The body is too large.", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "Full or shutting down; see Retry-After.", body = Problem, content_type = "application/problem+json"),
))]
pub(in crate::api) async fn generate_image(
    State(app): State<App>,
    headers: HeaderMap,
    Json { mut value, .. }: Json<ImageRequest>,
) -> Result<Response, ApiError> {
    let bytes = PictureFormat::accepted(&headers);
    let painted = value.painted()?;
    let mut plan = value.plan(&Served::of(&app.engine), &app.limits, &app.defaults.image)?;
    // Reading pictures costs the most, so everything else is checked first.
    if let (Some((image, mask)), Task::Image(params)) = (painted, &mut plan.request.task) {
        params.initial_codes = upload::kept(&app, image, mask, params.grid).await?;
    }
    run::respond(app, plan, bytes).await
}

impl ImageRequest {
    /// The picture to draw a part of anew, and its mask.
    fn painted(&mut self) -> Result<Option<(String, String)>, ApiError> {
        let missing = |field: &str, other: &str| {
            let message = format!("is missing: {other} alone does not say what to draw");
            Err(ApiError::invalid(field, message, "send image and mask together"))
        };
        match (self.image.take(), self.mask.take()) {
            (None, None) => Ok(None),
            (Some(_), None) => missing("mask", "image"),
            (None, Some(_)) => missing("image", "mask"),
            (Some(_), Some(_)) if self.initial_codes.is_some() => {
                let message = "cannot be sent together with image and mask";
                Err(ApiError::invalid("initial_codes", message, "send either the codes or the picture"))
            }
            (Some(image), Some(mask)) => Ok(Some((image, mask))),
        }
    }

    /// Checks every other field; pure.
    pub(in crate::api) fn plan(
        mut self,
        served: &Served,
        limits: &ApiLimits,
        defaults: &ImageDefaults,
    ) -> Result<Plan, ApiError> {
        check::choice("fidelity", self.fidelity.as_deref().unwrap_or("exact"), &[("exact", ())])?;
        let (prompt, text) = self.take_prompt(served, limits)?;
        let params = self.params(served, limits, defaults)?;
        let parts = self.returns.unwrap_or_default();
        let returns = Returns {
            tokens: parts.contains(&ImagePart::Codes),
            commit_steps: parts.contains(&ImagePart::CommitSteps),
            logprobs: parts.contains(&ImagePart::Logprobs),
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
        let format = self.format.unwrap_or_default();
        let (request, log) = common.plan(prompt, text, Task::Image(params), served, limits)?;
        Ok(Plan { request, stream, log, returns, format })
    }

    fn take_prompt(&mut self, served: &Served, limits: &ApiLimits) -> Result<(Prompt, Option<String>), ApiError> {
        exactly_one(&[("prompt", self.prompt.is_some()), ("prompt_token_ids", self.prompt_token_ids.is_some())])?;
        if let Some(ids) = self.prompt_token_ids.take() {
            token_ids(&ids, served, limits)?;
            return Ok((Prompt::Ids(ids), None));
        }
        let text = self.prompt.take().unwrap_or_default();
        check::chars("prompt", &text, limits.max_prompt_chars, &check::flag("max_prompt_chars"))?;
        Ok((Prompt::Text(text.clone()), Some(text)))
    }

    fn params(&self, served: &Served, limits: &ApiLimits, defaults: &ImageDefaults) -> Result<ImageParams, ApiError> {
        let Some((default_grid, codebook)) = served.image else {
            return Err(ApiError::invalid("prompt", "this model draws no images", "use POST /generate/text"));
        };
        let grid = grid(self.grid, default_grid, limits)?;
        let steps = self.steps.unwrap_or(defaults.steps.min(limits.max_steps) as u64);
        let steps = check::size("steps", steps, 1, limits.max_steps, &check::flag("max_steps"))?;
        let guidance = self.guidance_scale.unwrap_or(defaults.guidance_scale);
        let temperature = self.temperature.unwrap_or(defaults.temperature);
        let sampler = sampler::image(self.sampler.as_ref())?;
        let drawn = self.token_temperature.or_else(|| defaults.token_temperature(sampler, temperature));
        let token_temperature =
            drawn.map(|t| check::number("token_temperature", t, 0.0, fixed::TEMPERATURE)).transpose()?;
        Ok(ImageParams {
            steps,
            guidance_scale: check::number("guidance_scale", guidance, 0.0, fixed::GUIDANCE)?,
            schedule: schedule(self.schedule.as_deref())?,
            temperature: check::number("temperature", temperature, 0.0, fixed::TEMPERATURE)?,
            token_temperature,
            sampler,
            grid,
            initial_codes: codes(self.initial_codes.clone().unwrap_or_default(), grid, codebook)?,
            preview_every: self.preview_every(steps, limits, defaults)?,
        })
    }

    /// Previews cost a decode each, so only streams get them.
    fn preview_every(&self, steps: usize, limits: &ApiLimits, defaults: &ImageDefaults) -> Result<usize, ApiError> {
        let spread = steps.div_ceil(defaults.previews.max(1)) as u64;
        let every = self.preview_every.unwrap_or(spread);
        let every = check::size("preview_every", every, 0, limits.max_steps, &check::flag("max_steps"))?;
        Ok(if self.stream.unwrap_or(false) { every } else { 0 })
    }
}

/// Rows and columns of a grid, within bounds.
pub(super) fn grid(
    asked: Option<[u64; 2]>,
    default: (usize, usize),
    limits: &ApiLimits,
) -> Result<(usize, usize), ApiError> {
    let Some([rows, columns]) = asked else {
        return Ok(default);
    };
    let max = limits.max_image_cells;
    let hint = check::flag("max_image_cells");
    let rows = check::size("grid", rows, 1, max, &hint)?;
    let columns = check::size("grid", columns, 1, max, &hint)?;
    check::size("grid", rows as u64 * columns as u64, 1, max, &hint)?;
    Ok((rows, columns))
}

fn schedule(asked: Option<&str>) -> Result<Schedule, ApiError> {
    let schedules = [
        ("cosine", Schedule::Cosine),
        ("linear", Schedule::Linear),
        ("pow2", Schedule::Pow2),
        ("sigmoid", Schedule::Sigmoid),
    ];
    check::choice("schedule", asked.unwrap_or("cosine"), &schedules)
}

/// Known codes: none, or one entry per cell, each in the codebook.
fn codes(codes: Vec<Option<u32>>, grid: (usize, usize), codebook: u32) -> Result<Vec<Option<u32>>, ApiError> {
    let (field, cells) = ("initial_codes", grid.0 * grid.1);
    if !codes.is_empty() && codes.len() != cells {
        let message = format!("has {} entries, the grid {}x{} has {cells} cells", codes.len(), grid.0, grid.1);
        return Err(check::beyond(field, message, cells, codes.len(), "send one entry per cell, null where to draw"));
    }
    for (index, code) in codes.iter().enumerate() {
        if let Some(code) = code.filter(|code| *code >= codebook) {
            let message = format!("is {code}, the codebook has {codebook} codes");
            return Err(check::beyond(
                &format!("{field}[{index}]"),
                message,
                codebook - 1,
                code,
                "use codes of this model",
            ));
        }
    }
    Ok(codes)
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
