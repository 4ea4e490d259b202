//! Completions for learning: logged ones as samples, and fresh ones of logged prompts through the engine.
//!
//! Lives here: the way from a row of the log, or a finished completion, to a [`Sample`], and back to a request. Does
//! not: which prompts, rewards, losses.

use uuid::Uuid;

use super::RlError;
use super::logprob::{Drawn, Guidance, Sample};
use super::masks::{Role, Tail, roles};
use crate::adapters::VersionId;
use crate::engine::job::{Fidelity, FinishReason, ImageParams, Priority, Prompt, Task, TextParams};
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
        let mut params = row.params.clone();
        if let Some(params) = params.as_object_mut() {
            // The log keeps given codes as what they became: tokens that no step committed.
            let codes = row.tokens.iter().zip(&row.commit_steps);
            let given: Vec<Option<u32>> = codes.map(|(&code, &step)| (step < 0).then_some(code)).collect();
            let given = if given.iter().any(Option::is_some) { given } else { Vec::new() };
            params.insert("initial_codes".to_owned(), given.into());
        }
        let task = match row.kind {
            Kind::Text => serde_json::from_value::<TextParams>(params).map(Task::Text),
            Kind::Image => serde_json::from_value::<ImageParams>(params).map(Task::Image),
        };
        let task = task.map_err(|e| RlError::invalid("params", format!("not readable here: {e}")))?;
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
        if let Task::Text(params) = &mut task {
            // What is learned from is drawn from the policy itself, not from an approximation.
            params.fidelity = Fidelity::Exact;
            params.vicinity = 0;
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
            follow: false,
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

/// Least temperature at which draws are scored: gradients grow as its inverse, and one cold completion would outweigh a
/// batch.
const COLDEST: f64 = 0.1;

/// `sample` scored as its tokens were drawn: at their temperature, images also with their guidance. Greedy tokens count as
/// drawn at 1.
///
/// # Errors
/// When the negative prompt does not tokenise.
pub fn as_drawn(model: &Model, asked: &Asked, sample: Sample) -> Result<Sample, RlError> {
    let drawn = match &asked.task {
        Task::Text(params) => Drawn { temperature: scored_at(params.temperature), ..Drawn::default() },
        Task::Image(params) => Drawn {
            temperature: scored_at(params.draw_temperature()),
            guidance: guidance(model, asked, params.guidance_scale)?,
        },
    };
    Ok(Sample { drawn, ..sample })
}

fn scored_at(temperature: f64) -> f64 {
    if temperature > 0.0 { temperature.max(COLDEST) } else { 1.0 }
}

/// What an image was steered away from; `None` when it was not.
fn guidance(model: &Model, asked: &Asked, scale: f64) -> Result<Option<Guidance>, RlError> {
    if scale <= 0.0 {
        return Ok(None);
    }
    let ids = match &asked.negative {
        Some(Prompt::Text(text)) => {
            model.tokenizer.encode(text).map_err(|e| RlError::invalid("negative_prompt", e.to_string()))?
        }
        Some(Prompt::Ids(ids)) => ids.clone(),
        _ => Vec::new(),
    };
    let (prefix, suffix) = model.layout.image_frame(&ids);
    Ok(Some(Guidance { scale, prefix, suffix }))
}

/// What a sample is made of.
struct Parts<'a> {
    id: Uuid,
    prompt_ids: &'a [u32],
    tokens: &'a [u32],
    commit_steps: &'a [i32],
    logprobs: &'a [f32],
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
            logprobs: &finished.logprobs,
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
            logprobs: &row.logprobs,
            stopped: row.finish_reason == "stop",
            task: &asked.task,
        },
    )
}

/// Given positions came before the first step.
fn steps_of(commit_steps: &[i32]) -> Vec<u32> {
    commit_steps.iter().map(|&step| u32::try_from(step).unwrap_or(0)).collect()
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
                commit_steps: steps_of(parts.commit_steps),
                logprobs: parts.logprobs.to_vec(),
                drawn: Drawn::default(),
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
                commit_steps: steps_of(parts.commit_steps),
                logprobs: parts.logprobs.to_vec(),
                drawn: Drawn::default(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::diffusion::params::{ImageSampler, Schedule, TextSampler};
    use crate::starter;

    fn row(kind: Kind, tokens: Vec<u32>, commit_steps: Vec<i32>, params: serde_json::Value) -> CompletionRow {
        CompletionRow {
            id: Uuid::from_u128(7),
            group: Uuid::from_u128(8),
            index: 0,
            kind,
            model: "starter".to_owned(),
            base_sha256: "ab".to_owned(),
            adapter: "base@0".to_owned(),
            prompt: Some("a red circle".to_owned()),
            prompt_ids: vec![1, 2, 3],
            tokens,
            commit_steps,
            logprobs: Vec::new(),
            text: String::new(),
            grid: None,
            params,
            seed: 1,
            finish_reason: "stop".to_owned(),
            steps: 4,
            positions_evaluated: 0,
            queue_ms: 0.0,
            denoise_ms: 0.0,
            subject_hash: None,
            metadata: json!({}),
            created_us: 0,
        }
    }

    /// As the API writes them.
    fn image_params() -> serde_json::Value {
        json!({"fidelity": "exact", "grid": [8, 8], "guidance_scale": 0.5, "n": 8, "negative_prompt": "a cross",
            "preview_every": 0, "sampler": {"kind": "emerge"}, "schedule": "cosine", "steps": 16, "temperature": 1.0,
            "token_temperature": null})
    }

    fn text_params(stop: &[&str]) -> serde_json::Value {
        json!({"max_tokens": 8, "steps": 4, "block_length": 4, "temperature": 0.0, "top_p": 1.0, "top_k": 0,
            "sampler": {"kind": "low_confidence"}, "guidance_scale": 0.0, "stop_at_eos": true, "stop": stop, "n": 1})
    }

    #[test]
    fn a_logged_image_can_be_asked_again_and_learned_from() {
        let model = starter::model::load(&candle_core::Device::Cpu).unwrap();
        let codes = model.backbone.spec().image.as_ref().unwrap().codes.clone();
        let mut steps = vec![3; 64];
        steps[5] = -1;
        let row = row(Kind::Image, (0..64).collect(), steps, image_params());
        let asked = Asked::of(&row).unwrap();
        let Task::Image(params) = &asked.task else { panic!("an image") };
        assert_eq!((params.steps, params.sampler, params.schedule), (16, ImageSampler::Emerge, Schedule::Cosine));
        assert_eq!(params.initial_codes.iter().flatten().collect::<Vec<_>>(), [&5]);
        assert_eq!(asked.negative, Some(Prompt::Text("a cross".to_owned())));
        let sample = sample_of_row(&model, &asked, &row).unwrap();
        assert_eq!((sample.completion[63], sample.suffix.len()), (codes.start + 63, 1));
        assert_eq!((sample.roles[5], sample.roles[6]), (Role::Given, Role::Scored));
        assert_eq!(sample.drawn, Drawn::default(), "as published");
    }

    #[test]
    fn what_is_scored_as_drawn_has_its_guidance_and_temperature() {
        let model = starter::model::load(&candle_core::Device::Cpu).unwrap();
        let drawn = |kind, params: serde_json::Value| {
            let row = row(kind, vec![1; 8], vec![0; 8], params);
            let asked = Asked::of(&row).unwrap();
            as_drawn(&model, &asked, sample_of_row(&model, &asked, &row).unwrap()).unwrap().drawn
        };
        let image = |more: serde_json::Value| {
            let mut params = image_params();
            params["grid"] = json!([2, 4]);
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            drawn(Kind::Image, params)
        };
        let emerge = image(json!({"temperature": 0.7}));
        assert_eq!((emerge.temperature, emerge.guidance.map(|g| g.scale)), (0.7, Some(0.5)));
        // maskgit's `temperature` is that of its order.
        let maskgit = image(json!({"sampler": {"kind": "maskgit"}, "temperature": 2.0, "token_temperature": 0.6}));
        assert_eq!(maskgit.temperature, 0.6);
        assert_eq!(image(json!({"guidance_scale": 0.0})).guidance, None);
        let text = |temperature: f64| {
            let mut params = text_params(&[]);
            params["temperature"] = json!(temperature);
            drawn(Kind::Text, params).temperature
        };
        assert_eq!([text(0.8), text(0.01), text(0.0)], [0.8, COLDEST, 1.0], "nothing is drawn at 0");
    }

    #[test]
    fn the_end_of_a_text_is_learned_and_what_follows_is_hidden() {
        let model = starter::model::load(&candle_core::Device::Cpu).unwrap();
        let eos = model.backbone.spec().eos_ids[0];
        let sample = |stop: &[&str], tokens: Vec<u32>| {
            let row = row(Kind::Text, tokens.clone(), vec![0; tokens.len()], text_params(stop));
            let asked = Asked::of(&row).unwrap();
            assert!(matches!(&asked.task, Task::Text(p) if p.sampler == TextSampler::LowConfidence));
            sample_of_row(&model, &asked, &row).unwrap()
        };
        let ended = sample(&[], vec![20, 21]);
        assert_eq!(&ended.completion[..3], [20, 21, eos]);
        let scored = |s: &Sample| s.roles.iter().filter(|role| **role == Role::Scored).count();
        assert_eq!((ended.completion.len(), scored(&ended), ended.roles[3]), (8, 3, Role::Hidden));
        // A stop string may have ended it: then there is no end token to learn.
        assert_eq!(scored(&sample(&["x"], vec![20, 21])), 2);
        assert_eq!(scored(&sample(&[], (20..28).collect())), 8);
    }
}
