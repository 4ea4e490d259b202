//! Prompts to canvases: what is given, what is masked, and what guidance compares with.
//!
//! Works on token ids; whoever calls has tokenised the text and applied the family's layout.

use std::ops::Range;
use std::sync::Arc;

use super::canvas::{Canvas, Parts, Unconditional};
use super::params::{Ends, Fidelity, ImageParams, Invalid, TextParams};
use super::sample::Barred;
use super::schedule::{Block, aligned_blocks, aligned_template_blocks, even_blocks, template_blocks};
use super::select::Policy;
use crate::models::ModelSpec;

/// A sequence of given ids and masked places (`None`).
pub type Slots = Vec<Option<u32>>;

/// All of `ids` as given slots.
#[must_use]
pub fn given(ids: &[u32]) -> Slots {
    ids.iter().copied().map(Some).collect()
}

/// `ids` as a client that knows the model writes them: its mask id is a hole.
#[must_use]
pub fn with_holes(ids: &[u32], mask_id: u32) -> Slots {
    ids.iter().map(|&id| (id != mask_id).then_some(id)).collect()
}

impl Canvas {
    /// `params.max_tokens` masked tokens after `prefix`, and after these what fills the last of SDAR's blocks. With guidance
    /// the unconditional side is the same sequence with the given prefix masked (LLaDA), or `negative` in place of the
    /// prefix.
    ///
    /// # Errors
    /// When a length, an id or a parameter does not fit the model; names the field.
    pub fn text(
        spec: &ModelSpec,
        prefix: Slots,
        negative: Option<&[u32]>,
        params: &TextParams,
        seed: u64,
    ) -> Result<Self, Invalid> {
        params.check()?;
        check_fidelity(spec, params, prefix.contains(&None))?;
        let start = prefix.len();
        let end = start + params.max_tokens;
        let layout = if params.sampler.per_block() { aligned_blocks } else { even_blocks };
        let blocks = layout(start, params.max_tokens, params.block_length, params.steps)?;
        let mut ids = prefix;
        ids.resize(blocks.last().map_or(end, |last| last.end), None);
        if negative.is_some() && ids[..start].contains(&None) {
            return Err(Invalid::new("negative_prompt", "a prompt with masked positions takes none; leave it out"));
        }
        let unconditional = guided(params.guidance_scale).map(|scale| match negative {
            Some(negative) => {
                let masks = std::iter::repeat_n(spec.mask_id, ids.len() - start);
                let ids = negative.iter().copied().chain(masks).collect();
                Unconditional { ids, shift: negative.len() as isize - start as isize, scale }
            }
            None => Unconditional { ids: vec![spec.mask_id; ids.len()], shift: 0, scale },
        });
        build_text(spec, params, ids, start..end, blocks, unconditional, seed)
    }

    /// A text with holes; all of it is the result. Given text after a hole is context like any other.
    ///
    /// # Errors
    /// When a length, an id or a parameter does not fit the model, or there is no hole; names the field.
    pub fn template(spec: &ModelSpec, slots: Slots, params: &TextParams, seed: u64) -> Result<Self, Invalid> {
        params.check()?;
        check_fidelity(spec, params, true)?;
        let masked: Vec<bool> = slots.iter().map(Option::is_none).collect();
        let layout = if params.sampler.per_block() { aligned_template_blocks } else { template_blocks };
        let blocks = layout(&masked, params.block_length, params.steps)?;
        let body = 0..slots.len();
        let unconditional = guided(params.guidance_scale).map(|scale| Unconditional {
            ids: vec![spec.mask_id; slots.len()],
            shift: 0,
            scale,
        });
        build_text(spec, params, slots, body, blocks, unconditional, seed)
    }

    /// A grid of codes inside `frame` (ids before and after). With guidance, `empty` is the frame of the empty or the
    /// negative prompt.
    ///
    /// # Errors
    /// When the model has no image side, or a size, a code or a parameter does not fit; names the field.
    pub fn image(
        spec: &ModelSpec,
        frame: (Vec<u32>, Vec<u32>),
        empty: (Vec<u32>, Vec<u32>),
        params: &ImageParams,
        seed: u64,
    ) -> Result<Self, Invalid> {
        params.check()?;
        let cells = image_cells(spec, params)?;
        let codes = spec.image.as_ref().map(|i| i.codes.clone()).unwrap_or_default();
        let (before, after) = frame;
        let body = before.len()..before.len() + cells.len();
        let unconditional = guided(params.guidance_scale).map(|scale| {
            let (left, right) = empty;
            let shift = left.len() as isize - before.len() as isize;
            let cells = cells.iter().map(|c| c.unwrap_or(spec.mask_id));
            Unconditional { ids: left.into_iter().chain(cells).chain(right).collect(), shift, scale }
        });
        let ids: Slots = given(&before).into_iter().chain(cells).chain(given(&after)).collect();
        check_ids(spec, "prompt", &ids, unconditional.as_ref())?;
        Self::new(Parts {
            ids,
            origin: body.start,
            body,
            unconditional,
            policy: Policy::image(params),
            barred: Arc::new(Barred { never: banned(spec, &codes), ..Barred::default() }),
            vocab: codes,
            mask_id: spec.mask_id,
            eos: Vec::new(),
            stop_at_eos: false,
            fidelity: Fidelity::Exact,
            vicinity: 0,
            causal: spec.block,
            seed,
        })
    }
}

fn build_text(
    spec: &ModelSpec,
    params: &TextParams,
    ids: Slots,
    body: Range<usize>,
    blocks: Vec<Block>,
    unconditional: Option<Unconditional>,
    seed: u64,
) -> Result<Canvas, Invalid> {
    check_ids(spec, "max_tokens", &ids, unconditional.as_ref())?;
    check_blocks(spec, params)?;
    Canvas::new(Parts {
        body,
        ids,
        origin: 0,
        unconditional,
        policy: Policy::text(params, blocks),
        barred: barred(spec, params.ends)?.into(),
        vocab: spec.text_ids.clone(),
        mask_id: spec.mask_id,
        eos: spec.eos_ids.clone(),
        stop_at_eos: params.stop_at_eos,
        fidelity: params.fidelity,
        vicinity: params.vicinity,
        causal: spec.block,
        seed,
    })
}

/// The known cells of a grid as ids.
fn image_cells(spec: &ModelSpec, params: &ImageParams) -> Result<Slots, Invalid> {
    let Some(image) = &spec.image else {
        return Err(Invalid::new("model", format!("{} has no image side; ask for text instead", spec.name)));
    };
    let cells = params.grid.0.saturating_mul(params.grid.1);
    if cells == 0 || cells > spec.max_positions {
        let (rows, columns) = params.grid;
        let message = format!(
            "{rows} × {columns} is not possible: from 1 to {} cells; the model was made for {} × {}",
            spec.max_positions, image.grid.0, image.grid.1
        );
        return Err(Invalid::new("grid", message));
    }
    if params.initial_codes.is_empty() {
        return Ok(vec![None; cells]);
    }
    if params.initial_codes.len() != cells {
        let message = format!("{} entries for {cells} cells; send one per cell", params.initial_codes.len());
        return Err(Invalid::new("initial_codes", message));
    }
    if params.initial_codes.iter().all(Option::is_some) {
        return Err(Invalid::new("initial_codes", "every cell is given; leave at least one null"));
    }
    let size = image.codes.len() as u32;
    let id = |code: &Option<u32>| match code {
        Some(code) if *code >= size => {
            Err(Invalid::new("initial_codes", format!("code {code} is outside the codebook of {size}")))
        }
        code => Ok(code.map(|c| c + image.codes.start)),
    };
    params.initial_codes.iter().map(id).collect()
}

fn guided(scale: f64) -> Option<f32> {
    (scale > 0.0).then_some(scale as f32)
}

/// Indices within `vocab` of `ids`, each once.
fn indices<'a>(ids: impl Iterator<Item = &'a u32>, vocab: &Range<u32>) -> Vec<usize> {
    let mut indices: Vec<usize> = ids.filter(|id| vocab.contains(id)).map(|id| (id - vocab.start) as usize).collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// Indices within `vocab` of what must never be drawn: the mask and the banned ids.
fn banned(spec: &ModelSpec, vocab: &Range<u32>) -> Vec<usize> {
    indices(spec.banned_ids.iter().chain([&spec.mask_id]), vocab)
}

/// What is special about the ids of a text.
fn barred(spec: &ModelSpec, ends: Ends) -> Result<Barred, Invalid> {
    let of = |wanted: bool, field: &'static str, ids: &[u32]| match (wanted, ids) {
        (false, _) => Ok(Vec::new()),
        (true, []) => Err(Invalid::new(field, format!("{} has no id that ends a text; leave it out", spec.name))),
        (true, ids) => Ok(indices(ids.iter(), &spec.text_ids)),
    };
    let eos = &spec.eos_ids;
    let absent = of(ends.logits_eos_inf, "sampler.logits_eos_inf", &eos[..eos.len().min(1)])?;
    let doubted = of(ends.confidence_eos_eot_inf, "sampler.confidence_eos_eot_inf", eos)?;
    let mut never = banned(spec, &spec.text_ids);
    never.retain(|index| !absent.contains(index));
    Ok(Barred { never, absent, doubted })
}

/// Approximations are only for what they were made for.
fn check_fidelity(spec: &ModelSpec, params: &TextParams, holes: bool) -> Result<(), Invalid> {
    let why = match params.fidelity {
        Fidelity::Exact if params.vicinity > 0 => {
            let message = format!(
                "{} says how far an approximation computes anew, and this is exact; leave it out, or ask for fidelity prefix or dual",
                params.vicinity
            );
            return Err(Invalid::new("vicinity", message));
        }
        Fidelity::Exact => return Ok(()),
        _ if spec.block.is_some() => "this model attends by blocks, so finished blocks are kept without any loss",
        _ if spec.shifted => {
            "this model predicts a position from its left neighbour, which a block's cache does not have"
        }
        _ if holes => "a template, or a prompt with masked positions, is not filled block after block",
        _ if params.guidance_scale > 0.0 => "guidance compares with a second sequence, for which nothing is kept",
        _ => return Ok(()),
    };
    Err(Invalid::new("fidelity", format!("only exact is possible here: {why}; leave it out")))
}

/// SDAR's samplers go by the blocks that attention goes by.
fn check_blocks(spec: &ModelSpec, params: &TextParams) -> Result<(), Invalid> {
    match spec.block {
        Some(block) if params.sampler.per_block() && params.block_length != block => {
            let length = params.block_length;
            Err(Invalid::new("block_length", format!("{length} is not the model's: its blocks have {block}; use that")))
        }
        _ => Ok(()),
    }
}

fn check_size(spec: &ModelSpec, field: &'static str, positions: usize) -> Result<(), Invalid> {
    if positions > spec.max_positions {
        let message = format!(
            "prompt and completion make {positions} positions, the model takes {}; shorten one of them",
            spec.max_positions
        );
        return Err(Invalid::new(field, message));
    }
    Ok(())
}

fn check_ids(
    spec: &ModelSpec,
    field: &'static str,
    ids: &Slots,
    unconditional: Option<&Unconditional>,
) -> Result<(), Invalid> {
    check_size(spec, field, ids.len().max(unconditional.map_or(0, |u| u.ids.len())))?;
    let sides = ids.iter().flatten().chain(unconditional.into_iter().flat_map(|u| &u.ids));
    match sides.max() {
        Some(&id) if id as usize >= spec.vocab_size => {
            let message = format!("id {id} is outside the vocabulary of {}", spec.vocab_size);
            Err(Invalid::new("prompt_token_ids", message))
        }
        _ => Ok(()),
    }
}
