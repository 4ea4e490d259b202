//! Completions for learning: logged ones as samples, and fresh ones of logged prompts through the engine.
//!
//! Lives here: the way from a row of the log, or a finished completion, to a [`Sample`], and back to a request. Does
//! not: which prompts, rewards, losses.

use uuid::Uuid;

use super::RlError;
use super::logprob::Sample;
use super::masks::{Role, Tail, roles};
use crate::adapters::VersionId;
use crate::engine::job::{FinishReason, ImageParams, Priority, Prompt, Task, TextParams};
use crate::engine::{Engine, EngineError, Event, Finished, Request};
use crate::models::Model;
use crate::store::{CompletionRow, Kind};

/// What was asked, so that it can be asked again.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The prompt.
    pub prompt: Prompt,
    /// What guidance steers away from.
    pub negative: Option<Prompt>,
    /// Text or image, with its settings.
    pub task: Task,
}

impl Asked {
    /// The request behind a logged completion.
    ///
    /// # Errors
    /// When the row's settings are not those of this release, or its prompt was not kept.
    pub fn of(row: &CompletionRow) -> Result<Self, RlError> {
        let settings = |e: serde_json::Error| RlError::invalid("params", format!("not readable here: {e}"));
        let task = match row.kind {
            Kind::Text => Task::Text(serde_json::from_value::<TextParams>(row.params.clone()).map_err(settings)?),
            Kind::Image => Task::Image(serde_json::from_value::<ImageParams>(row.params.clone()).map_err(settings)?),
        };
        let prompt = match (row.kind, &row.prompt) {
            // The whole prefix is in the log, whatever it was made from.
            (Kind::Text, _) if !row.prompt_ids.is_empty() => Prompt::Ids(row.prompt_ids.clone()),
            (Kind::Image, Some(text)) => Prompt::Text(text.clone()),
            _ => return Err(RlError::invalid("prompt", "was not kept, so it cannot be asked again")),
        };
        let negative = row.params.get("negative_prompt").and_then(|text| text.as_str());
        Ok(Self { prompt, negative: negative.map(|text| Prompt::Text(text.to_owned())), task })
    }

    /// `n` fresh completions by `adapter`, in order of index.
    ///
    /// # Errors
    /// What the engine refuses or fails with.
    pub async fn complete(
        &self,
        engine: &Engine,
        adapter: &VersionId,
        n: u32,
        seed: u64,
        priority: Priority,
    ) -> Result<Vec<Finished>, EngineError> {
        let mut task = self.task.clone();
        if let Task::Image(params) = &mut task {
            params.preview_every = 0;
        }
        let mut ticket = engine.submit(Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative.clone(),
            task,
            n,
            seed,
            priority,
            deadline: None,
            adapter: Some(adapter.clone()),
            subject: None,
        })?;
        let mut finished = Vec::with_capacity(n as usize);
        while let Some(event) = ticket.next().await {
            match event {
                Event::Finished(one) => finished.push(*one),
                Event::Failed(error) => return Err(error),
                _ => {}
            }
        }
        finished.sort_by_key(|one| one.index);
        Ok(finished)
    }
}

/// What a sample is made of.
struct Parts<'a> {
    id: Uuid,
    prompt_ids: &'a [u32],
    tokens: &'a [u32],
    commit_steps: &'a [i32],
    /// It ended by itself, before its canvas did.
    stopped: bool,
    task: &'a Task,
}

/// A finished completion as a sample.
///
/// # Errors
/// When the model has no image side.
pub fn sample_of(model: &Model, task: &Task, finished: &Finished) -> Result<Sample, RlError> {
    sample(
        model,
        &Parts {
            id: finished.id,
            prompt_ids: &finished.prompt_ids,
            tokens: &finished.tokens,
            commit_steps: &finished.commit_steps,
            stopped: finished.finish_reason == FinishReason::Stop,
            task,
        },
    )
}

/// A logged completion as a sample.
///
/// # Errors
/// When its settings are not those of this release, or the model has no image side.
pub fn sample_of_row(model: &Model, asked: &Asked, row: &CompletionRow) -> Result<Sample, RlError> {
    sample(
        model,
        &Parts {
            id: row.id,
            prompt_ids: &row.prompt_ids,
            tokens: &row.tokens,
            commit_steps: &row.commit_steps,
            stopped: row.finish_reason == "stop",
            task: &asked.task,
        },
    )
}

fn sample(model: &Model, parts: &Parts<'_>) -> Result<Sample, RlError> {
    let spec = model.backbone.spec();
    let id = parts.id.as_u128() as u64;
    let given = |role: Role, step: Option<&i32>| if step.is_some_and(|&step| step < 0) { Role::Given } else { role };
    match parts.task {
        Task::Image(_) => {
            let image = spec.image.as_ref();
            let codes =
                image.ok_or_else(|| RlError::invalid("kind", "an image, and this model draws none"))?.codes.clone();
            let completion: Vec<u32> = parts.tokens.iter().map(|code| codes.start + code).collect();
            let steps = (0..completion.len()).map(|k| parts.commit_steps.get(k));
            let roles = steps.map(|step| given(Role::Scored, step)).collect();
            let (_, suffix) = model.layout.image_frame(&[]);
            Ok(Sample {
                id,
                prefix: parts.prompt_ids.to_vec(),
                completion,
                suffix,
                vocab: codes,
                roles,
                guidance: None,
            })
        }
        Task::Text(params) => {
            let mut completion = parts.tokens.to_vec();
            let eos = spec.eos_ids.first().copied();
            // The result leaves out the end token that was committed; with stop strings it may have been one of them.
            let ended = parts.stopped && params.stop_at_eos && params.stop.is_empty();
            completion.extend(eos.filter(|_| ended && completion.len() < params.max_tokens));
            let mut roles = roles(&completion, &spec.eos_ids, Tail::default());
            for (role, step) in roles.iter_mut().zip(parts.commit_steps) {
                *role = given(*role, Some(step));
            }
            // What was still masked when it ended was masked for every step before.
            let canvas = params.max_tokens.max(completion.len());
            if !parts.prompt_ids.is_empty() {
                completion.resize(canvas, eos.unwrap_or_default());
                roles.resize(canvas, Role::Hidden);
            }
            let prefix = parts.prompt_ids.to_vec();
            Ok(Sample {
                id,
                prefix,
                completion,
                suffix: Vec::new(),
                vocab: spec.text_ids.clone(),
                roles,
                guidance: None,
            })
        }
    }
}
