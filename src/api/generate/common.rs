//! What both generate routes ask for in the same way, and what a checked request consists of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::check::{self, FIXED};
use super::picture::PictureFormat;
use crate::adapters::VersionId;
use crate::api::error::ApiError;
use crate::api::limits::{ApiLimits, fixed};
use crate::engine::{self, Engine, Request, Serving};

/// Largest random seed: every JSON reader can hold it exactly.
const MAX_RANDOM_SEED: u64 = (1 << 53) - 1;

/// What validation must know of the model.
#[derive(Debug, Clone)]
pub(in crate::api) struct Served {
    /// Adapters that may be asked for.
    pub adapters: Arc<Serving>,
    /// Ids below this exist.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Length of the blocks that the model goes by.
    pub block: Option<usize>,
    /// Grid and codebook size, when the model draws.
    pub image: Option<((usize, usize), u32)>,
    /// Its texts may be about a picture.
    pub looks: bool,
}

impl Served {
    pub(in crate::api) fn of(engine: &Engine) -> Self {
        let spec = engine.spec();
        let drawn = spec.image.as_ref().filter(|_| engine.draws());
        Self {
            adapters: engine.serving(),
            vocab_size: spec.vocab_size,
            max_positions: spec.max_positions,
            block: spec.block,
            image: drawn.map(|image| (image.grid, image.codes.end - image.codes.start)),
            looks: engine.looks(),
        }
    }
}

/// Scheduling class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Throughput matters, latency does not.
    Batch,
    /// Runs in what is left over.
    Rollout,
}

/// What an SSE `step` event carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StreamMode {
    /// Append-only text.
    #[default]
    Committed,
    /// Also every committed position with its token and confidence.
    Edits,
}

/// Optional parts of the reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::api) struct Returns {
    pub tokens: bool,
    pub commit_steps: bool,
    pub logprobs: bool,
}

/// A checked request, what to log of it, and how to answer it.
#[derive(Debug)]
pub(in crate::api) struct Plan {
    pub request: Request,
    /// `None`: one reply at the end.
    pub stream: Option<StreamMode>,
    pub log: Log,
    pub returns: Returns,
    pub format: PictureFormat,
}

/// What the log keeps besides the result.
#[derive(Debug)]
pub(in crate::api) struct Log {
    pub store: bool,
    /// The prompt as sent; `None` when it was ids.
    pub prompt: Option<String>,
    /// Effective settings, echoed in the reply.
    pub params: Value,
    pub user: Option<String>,
    pub metadata: Value,
}

/// The fields that both request bodies have, moved out of them.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub n: Option<u64>,
    pub seed: Option<u64>,
    pub negative_prompt: Option<String>,
    pub adapter: Option<String>,
    pub priority: Option<Priority>,
    pub deadline_ms: Option<u64>,
    pub store: Option<bool>,
    pub user: Option<String>,
    pub metadata: Option<BTreeMap<String, String>>,
}

impl Common {
    /// Checks them; `prompt` and `task` are checked already, `prompt_text` is what the log keeps of the prompt.
    pub(super) fn plan(
        self,
        prompt: engine::job::Prompt,
        prompt_text: Option<String>,
        task: engine::job::Task,
        served: &Served,
        limits: &ApiLimits,
    ) -> Result<(Request, Log), ApiError> {
        let n = check::integer("n", self.n.unwrap_or(1), 1, u64::from(limits.max_n), &check::flag("max_n"))? as u32;
        let adapter = self.adapter.map(|id| adapter(&id, served)).transpose()?;
        if let Some(text) = &self.negative_prompt {
            check::chars("negative_prompt", text, limits.max_prompt_chars, &check::flag("max_prompt_chars"))?;
        }
        let deadline = self
            .deadline_ms
            .map(|ms| check::integer("deadline_ms", ms, 1, limits.max_deadline_ms, &check::flag("max_deadline_ms")));
        let deadline = deadline.transpose()?;
        user(self.user.as_deref())?;
        let metadata = metadata(self.metadata.unwrap_or_default())?;
        let priority = self.priority.unwrap_or_default();
        let mut params = settings(&task)?;
        params.insert("n".to_owned(), n.into());
        params.entry("fidelity").or_insert_with(|| "exact".into());
        if let Some(text) = &self.negative_prompt {
            params.insert("negative_prompt".to_owned(), text.as_str().into());
        }
        if let Some(ms) = deadline {
            params.insert("deadline_ms".to_owned(), ms.into());
        }
        let request = Request {
            prompt,
            negative_prompt: self.negative_prompt.map(engine::job::Prompt::Text),
            task,
            n,
            seed: self.seed.unwrap_or_else(random_seed),
            priority: priority.into(),
            deadline: deadline.map(Duration::from_millis),
            adapter,
            subject: None,
            follow: false,
        };
        let params = Value::Object(params);
        let log = Log { store: self.store.unwrap_or(true), prompt: prompt_text, params, user: self.user, metadata };
        Ok((request, log))
    }
}

impl From<Priority> for engine::job::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Interactive => Self::Interactive,
            Priority::Batch => Self::Batch,
            Priority::Rollout => Self::Rollout,
        }
    }
}

/// Exactly one of the ways to give a prompt.
pub(super) fn exactly_one(given: &[(&'static str, bool)]) -> Result<&'static str, ApiError> {
    let names = given.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let mut present = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name);
    match (present.next(), present.next()) {
        (Some(name), None) => Ok(name),
        (None, _) => Err(ApiError::invalid("prompt", "is missing", format!("send exactly one of {names}"))),
        (Some(first), Some(second)) => {
            let message = format!("cannot be sent together with {first}");
            Err(ApiError::invalid(second, message, format!("send exactly one of {names}")))
        }
    }
}

/// Raw ids: bounded in number, each in the vocabulary.
pub(super) fn token_ids(ids: &[u32], served: &Served, limits: &ApiLimits) -> Result<(), ApiError> {
    let field = "prompt_token_ids";
    check::count(field, ids.len(), limits.max_prompt_tokens, &check::flag("max_prompt_tokens"))?;
    for (index, id) in ids.iter().enumerate() {
        if *id as usize >= served.vocab_size {
            let message = format!("is {id}, the vocabulary has {} ids", served.vocab_size);
            let field = format!("{field}[{index}]");
            return Err(check::beyond(
                &field,
                message,
                served.vocab_size - 1,
                *id,
                "use ids of this model's tokenizer",
            ));
        }
    }
    Ok(())
}

/// An adapter version that is served.
fn adapter(asked: &str, served: &Served) -> Result<VersionId, ApiError> {
    let id = asked.parse().ok().filter(|id| served.adapters.get(id).is_some());
    id.ok_or_else(|| ApiError::NotFound {
        what: "adapter",
        name: asked.chars().take(128).collect(),
        field: Some("adapter"),
        hint: "leave it out for the current one; GET /adapters lists those that can be asked for",
    })
}

/// An end user's id.
pub(in crate::api) fn user(user: Option<&str>) -> Result<(), ApiError> {
    match user {
        Some("") => Err(ApiError::invalid("user", "is empty", "leave it out instead")),
        Some(user) => check::chars("user", user, fixed::USER_CHARS, FIXED),
        None => Ok(()),
    }
}

fn metadata(pairs: BTreeMap<String, String>) -> Result<Value, ApiError> {
    check::count("metadata", pairs.len(), fixed::METADATA_PAIRS, FIXED)?;
    for (key, value) in &pairs {
        check::chars("metadata", key, fixed::METADATA_KEY_CHARS, "shorten the key; this limit is fixed")?;
        check::chars(&format!("metadata.{key}"), value, fixed::METADATA_VALUE_CHARS, FIXED)?;
    }
    Ok(Value::Object(pairs.into_iter().map(|(key, value)| (key, Value::String(value))).collect()))
}

/// The task's settings as JSON. Known codes are left out: the result has them, with commit step −1.
fn settings(task: &engine::job::Task) -> Result<Map<String, Value>, ApiError> {
    let value = match task {
        engine::job::Task::Text(params) => serde_json::to_value(params),
        engine::job::Task::Image(params) => serde_json::to_value(params),
    };
    match value {
        Ok(Value::Object(mut map)) => {
            map.remove("initial_codes");
            Ok(map)
        }
        Ok(_) => Err(ApiError::Internal("settings are not an object".to_owned())),
        Err(error) => Err(ApiError::Internal(format!("settings are not JSON: {error}"))),
    }
}

/// From the random bits of a fresh UUID.
fn random_seed() -> u64 {
    Uuid::now_v7().as_u64_pair().1 & MAX_RANDOM_SEED
}

/// What was evaluated and generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompt as the model saw it, layout included; once per request.
    pub prompt_tokens: usize,
    /// Generated tokens (text) or codes (image) of all completions; given ones do not count.
    pub completion_tokens: usize,
}

/// Where the time went; the slowest completion counts.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Timing {
    /// Milliseconds before the first step.
    pub queue_ms: f64,
    /// Milliseconds from the first step to the last.
    pub denoise_ms: f64,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A model of 100 ids with an 8×8 grid and 16 codes.
    pub(in crate::api::generate) fn served() -> Served {
        let image = Some(((8, 8), 16));
        Served { adapters: Arc::default(), vocab_size: 100, max_positions: 200, block: None, image, looks: true }
    }

    #[test]
    fn random_seeds_differ_and_are_exact_in_json() {
        let seeds: std::collections::HashSet<u64> = (0..1000).map(|_| random_seed()).collect();
        assert_eq!(seeds.len(), 1000);
        assert!(seeds.iter().all(|seed| *seed <= MAX_RANDOM_SEED));
    }

    #[test]
    fn exactly_one_prompt() {
        let given = |a, b| exactly_one(&[("prompt", a), ("template", b)]);
        assert_eq!(given(true, false).unwrap(), "prompt");
        assert_eq!(given(true, true).unwrap_err().problem().field.unwrap(), "template");
        assert_eq!(given(false, false).unwrap_err().problem().detail, "prompt: is missing");
    }
}
