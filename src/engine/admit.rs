//! Requests to canvases: tokenising, the family's layout, and refusals that name the field and the numbers.

use std::sync::Arc;

use super::job::{Message, Prompt, Request, Task, TemplatePart};
use super::transcript::Style;
use super::{EngineError, Limits};
use crate::diffusion::canvas::Canvas;
use crate::diffusion::frame::{Slots, given, with_holes};
use crate::diffusion::params::{ImageParams, Invalid, TextParams};
use crate::diffusion::rng::completion_seed;
use crate::models::Model;

impl From<Invalid> for EngineError {
    fn from(e: Invalid) -> Self {
        Self::Invalid { field: e.field, message: e.message }
    }
}

/// An admitted request: its canvases, and how their text is written.
pub(super) struct Admitted {
    pub(super) canvases: Vec<Canvas>,
    pub(super) style: Style,
}

/// The canvases of a request, in order of index.
pub(super) fn admit(model: &Model, request: &Request, limits: &Limits) -> Result<Admitted, EngineError> {
    if request.n == 0 || request.n as usize > limits.max_queue {
        let message = format!("must be from 1 to {}, got {}", limits.max_queue, request.n);
        return Err(Invalid::new("n", message).into());
    }
    let build: Box<dyn Fn(u64) -> Result<Canvas, Invalid> + '_> = match &request.task {
        Task::Text(params) => text(model, request, params)?,
        Task::Image(params) => image(model, request, params)?,
    };
    let canvases: Vec<Canvas> =
        (0..request.n).map(|index| build(completion_seed(request.seed, index))).collect::<Result<_, _>>()?;
    let rows = canvases.iter().map(Canvas::most_rows).max().unwrap_or(0);
    if rows > limits.max_rows {
        let (field, guidance) = match &request.task {
            Task::Text(p) => ("max_tokens", p.guidance_scale > 0.0),
            Task::Image(p) => ("grid", p.guidance_scale > 0.0),
        };
        let cause = if guidance { ", guidance included" } else { "" };
        let message = format!(
            "a step takes {rows} rows (prompt and canvas{cause}), the server runs at most {}; ask for less",
            limits.max_rows
        );
        return Err(Invalid::new(field, message).into());
    }
    let style = style(model, request, &canvases);
    Ok(Admitted { canvases, style })
}

type Build<'a> = Box<dyn Fn(u64) -> Result<Canvas, Invalid> + 'a>;

fn text<'a>(model: &'a Model, request: &Request, params: &'a TextParams) -> Result<Build<'a>, EngineError> {
    let spec = model.backbone.spec();
    if let Prompt::Template(parts) = &request.prompt {
        if request.negative_prompt.is_some() {
            return Err(Invalid::new("negative_prompt", "a template has no place for it; leave it out").into());
        }
        let slots = template(model, parts)?;
        return Ok(Box::new(move |seed| Canvas::template(spec, slots.clone(), params, seed)));
    }
    let (picture, prompt) = match &request.prompt {
        Prompt::About { codes, prompt } => (Some(codes), &**prompt),
        prompt => (None, prompt),
    };
    let before = |field, prompt: &Prompt| {
        let asked = text_prefix(model, field, prompt)?;
        match picture {
            Some(codes) => seen(model, codes, &asked),
            None => Ok(asked),
        }
    };
    let prefix = match prompt {
        // A client that sends ids knows the model: its mask id is a hole, as in the reference.
        Prompt::Ids(_) => with_holes(&before("prompt", prompt)?, spec.mask_id),
        prompt => given(&before("prompt", prompt)?),
    };
    // What is steered away from is said of the same picture.
    let negative = request.negative_prompt.as_ref().map(|prompt| before("negative_prompt", prompt)).transpose()?;
    Ok(Box::new(move |seed| Canvas::text(spec, prefix.clone(), negative.as_deref(), params, seed)))
}

fn image<'a>(model: &'a Model, request: &Request, params: &'a ImageParams) -> Result<Build<'a>, EngineError> {
    let spec = model.backbone.spec();
    let prompt = ids(model, "prompt", &request.prompt)?;
    let negative = match &request.negative_prompt {
        Some(prompt) => ids(model, "negative_prompt", prompt)?,
        None => Vec::new(),
    };
    if spec.image.is_none() {
        let message = format!("{} has no image side; ask for text instead", spec.name);
        return Err(Invalid::new("model", message).into());
    }
    let frame = model.layout.image_frame(&prompt);
    let empty = model.layout.image_frame(&negative);
    Ok(Box::new(move |seed| Canvas::image(spec, frame.clone(), empty.clone(), params, seed)))
}

/// The ids before a text.
fn text_prefix(model: &Model, field: &'static str, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
    match prompt {
        Prompt::Ids(ids) => Ok(ids.clone()),
        Prompt::Messages(messages) => conversation(model, messages),
        prompt => Ok(model.layout.text_prefix(&ids(model, field, prompt)?)),
    }
}

/// The ids before a text about a picture, for those before it without one.
fn seen(model: &Model, codes: &[u32], asked: &[u32]) -> Result<Vec<u32>, EngineError> {
    let spec = model.backbone.spec();
    let size = spec.image.as_ref().map_or(0, |image| image.codes.len());
    if let Some(code) = codes.iter().find(|code| **code as usize >= size) {
        let message = format!("code {code} is outside the model's codebook of {size}; is the codec another model's?");
        return Err(Invalid::new("image", message).into());
    }
    let message = || format!("{} looks at no pictures; leave it out", spec.name);
    model.layout.seen_prefix(codes, asked).ok_or_else(|| Invalid::new("image", message()).into())
}

/// The ids of a prompt that has no layout of its own.
fn ids(model: &Model, field: &'static str, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
    match prompt {
        Prompt::Text(text) => encode(model, field, text),
        Prompt::Ids(ids) => Ok(ids.clone()),
        Prompt::Template(_) | Prompt::Messages(_) | Prompt::About { .. } => {
            let message = "a template, a conversation or a picture is only possible as the prompt of a text";
            Err(Invalid::new(field, message).into())
        }
    }
}

/// The ids before the answer.
fn conversation(model: &Model, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
    let ids = model.layout.conversation(&model.tokenizer, messages);
    ids.map_err(|e| Invalid::new("messages", e.to_string()).into())
}

fn encode(model: &Model, field: &'static str, text: &str) -> Result<Vec<u32>, EngineError> {
    model.tokenizer.encode(text).map_err(|e| Invalid::new(field, e.to_string()).into())
}

/// The slots of a template; stops at the first one too many, whatever a hole claims.
fn template(model: &Model, parts: &[TemplatePart]) -> Result<Slots, EngineError> {
    let limit = model.backbone.spec().max_positions;
    let mut slots = Slots::new();
    for part in parts {
        let ids = match part {
            TemplatePart::Text(text) => given(&encode(model, "template", text)?),
            TemplatePart::Hole(n) => vec![None; (*n).min(limit + 1)],
        };
        slots.extend(ids);
        if slots.len() > limit {
            let message = format!("makes more than the {limit} positions that the model takes; shorten it");
            return Err(Invalid::new("template", message).into());
        }
    }
    Ok(slots)
}

fn style(model: &Model, request: &Request, canvases: &[Canvas]) -> Style {
    let stop = match &request.task {
        Task::Text(params) => params.stop.clone(),
        Task::Image(_) => Vec::new(),
    };
    Style {
        tokenizer: Arc::clone(&model.tokenizer),
        initial: canvases.first().map(Canvas::partial).unwrap_or_default().into(),
        eos: model.backbone.spec().eos_ids.clone().into(),
        stop: stop.into(),
        is_text: matches!(request.task, Task::Text(_)),
    }
}
