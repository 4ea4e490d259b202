//! Which family a checkpoint is of, and what its `config.json` says: one reader per way of writing it.

use serde_json::{Map, Value};

use crate::models::ModelError;
use crate::models::fields::{Fields, missing, refused};
use crate::models::names::Names;
use crate::models::shape::{Pattern, TransformerConfig, Variant};

/// A family of models: how they are configured, laid out and stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// LLaDA-8B, LLaDA-1.5, iLLaDA.
    Llada,
    /// MMaDA: LLaDA with images.
    Mmada,
    /// Dream, Dream-Coder, DiffuCoder: Qwen2.5 with shifted logits.
    Dream,
    /// SDAR, TraDo: Qwen3, causal by blocks.
    Sdar,
}

/// `architectures[0]`, `model_type` and the family.
const KNOWN: [(&str, &str, Family); 4] = [
    ("LLaDAModelLM", "llada", Family::Llada),
    ("MMadaModelLM", "mmada", Family::Mmada),
    ("DreamModel", "Dream", Family::Dream),
    ("SDARForCausalLM", "sdar", Family::Sdar),
];

/// Fields that say nothing about what the model computes: how it is loaded, trained or exported elsewhere.
const HARMLESS: [&str; 15] = [
    "_name_or_path",
    "architectures",
    "attention_dropout", // at training time only, as all dropouts
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "dtype", // the dtype of the tensors is in their files
    "initializer_range",
    "pad_token_id", // nothing is ever padded here
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "gradient_checkpointing",
];

/// What a `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub(super) family: Family,
    pub(super) config: TransformerConfig,
    pub(super) mask_id: u32,
    pub(super) eos_id: u32,
    pub(super) image: Option<ImageFacts>,
}

/// The image side of MMaDA.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ImageFacts {
    /// Number of codes.
    pub(super) codes: usize,
    /// Side of the usual grid.
    pub(super) side: usize,
    /// Id of code 0, where it is not the first after the tokenizer's.
    pub(super) offset: Option<u32>,
}

impl Facts {
    /// Reads the fields of `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, unknown or unsupported.
    pub(super) fn read(map: Map<String, Value>) -> Result<Self, ModelError> {
        let family = Family::of(&map)?;
        let mut fields = Fields::new(map);
        let facts = match family {
            Family::Llada | Family::Mmada => llada(family, &mut fields)?,
            Family::Dream | Family::Sdar => qwen(family, &mut fields)?,
        };
        fields.skip(&["model_type"]);
        fields.finish(|name| HARMLESS.contains(&name))?;
        facts.config.validate()?;
        Ok(facts)
    }
}

impl Family {
    /// By `architectures[0]`, else by `model_type`: LLaDA-MoE and Lumina-DiMOO call themselves `llada`, too.
    fn of(map: &Map<String, Value>) -> Result<Self, ModelError> {
        let architecture = map.get("architectures").and_then(|list| list.get(0)).unwrap_or(&Value::Null);
        let kind = map.get("model_type").unwrap_or(&Value::Null);
        let served = KNOWN.map(|(architecture, _, _)| architecture).join(", ");
        let hint = format!("the families served are {served}");
        let (field, found) = match (architecture.as_str(), kind.as_str()) {
            (Some(found), _) => ("architectures", KNOWN.iter().find(|(name, ..)| *name == found)),
            (None, Some(found)) => ("model_type", KNOWN.iter().find(|(_, name, _)| *name == found)),
            (None, None) => return Err(missing("architectures", &hint)),
        };
        let value = if field == "architectures" { architecture } else { kind };
        let &(_, expected, family) = found.ok_or_else(|| refused(field, value, &hint))?;
        match kind.as_str() {
            Some(name) if name != expected => {
                Err(refused("model_type", kind, &format!("{} is of model_type {expected}", architecture)))
            }
            _ => Ok(family),
        }
    }
}

/// LLaDA's fields, and what MMaDA adds.
fn llada(family: Family, fields: &mut Fields) -> Result<Facts, ModelError> {
    fields.only("block_type", "llama", "only llama blocks are served")?;
    fields.only("block_group_size", 1, "only 1 is served")?;
    fields.only("layer_norm_type", "rms", "only rms is served")?;
    fields.only("layer_norm_with_affine", true, "norms without gains are not served")?;
    fields.only("bias_for_layer_norm", false, "norms with biases are not served")?;
    fields.only("activation_type", "silu", "only silu is served")?;
    fields.only("alibi", false, "only rotary positions are served")?;
    fields.only("rope", true, "only rotary positions are served")?;
    fields.only("rope_full_precision", true, "rotations are computed in f32 here")?;
    fields.only("attention_layer_norm", false, "norms of whole queries and keys are not served")?;
    fields.only("input_emb_norm", false, "scaled embeddings are not served")?;
    fields.only("include_bias", false, "biases are served in the q, k and v projections only (include_qkv_bias)")?;
    // Training, initialisation, and switches of things that are off.
    fields.skip(&["alibi_bias_max", "attention_layer_norm_with_affine", "embedding_dropout", "residual_dropout"]);
    fields.skip(&["flash_attention", "init_cutoff_factor", "init_device", "init_fn", "init_std", "precision"]);

    let (d_model, n_heads) = (fields.size("d_model")?, fields.size("n_heads")?);
    let (mlp, ratio) = (fields.maybe_size("mlp_hidden_size")?, fields.maybe_size("mlp_ratio")?);
    let vocab = fields.size("vocab_size")?;
    let embedding_size = fields.maybe_size("embedding_size")?.unwrap_or(vocab);
    if embedding_size < vocab {
        return Err(refused(
            "embedding_size",
            &embedding_size.into(),
            &format!("it must be at least vocab_size, {vocab}"),
        ));
    }
    let weight_tying = fields.flag("weight_tying", true)?;
    fields.only("tie_word_embeddings", weight_tying, "it contradicts weight_tying")?;
    let config = TransformerConfig {
        d_model,
        n_layers: fields.size("n_layers")?,
        n_heads,
        n_kv_heads: kv_heads(fields, n_heads)?,
        mlp_hidden_size: mlp.unwrap_or(ratio.unwrap_or(4) * d_model),
        embedding_size,
        max_sequence_length: fields.size("max_sequence_length")?,
        rms_norm_eps: fields.positive("rms_norm_eps", Some(1e-5))?,
        rope_theta: fields.positive("rope_theta", Some(10_000.0))?,
        weight_tying,
        variant: Variant {
            qkv_bias: fields.flag("include_qkv_bias", false)?,
            scale_logits: fields.flag("scale_logits", false)?,
            ..Variant::default()
        },
    };
    let image = match family {
        Family::Mmada => Some(mmada(fields, embedding_size)?),
        _ => None,
    };
    Ok(Facts {
        family,
        config,
        mask_id: fields.id("mask_token_id", "add the id of the mask token (LLaDA 126336, iLLaDA 5)")?,
        eos_id: fields.id("eos_token_id", "add the id that ends a text")?,
        image,
    })
}

/// `n_kv_heads`, or what the older `multi_query_attention` means.
fn kv_heads(fields: &mut Fields, n_heads: usize) -> Result<usize, ModelError> {
    let shared = fields.flag("multi_query_attention", false)?;
    match fields.maybe_size("n_kv_heads")? {
        Some(n) if shared && n != 1 => Err(refused("multi_query_attention", &true.into(), "it contradicts n_kv_heads")),
        Some(n) => Ok(n),
        None => Ok(if shared { 1 } else { n_heads }),
    }
}

fn mmada(fields: &mut Fields, embedding_size: usize) -> Result<ImageFacts, ModelError> {
    fields.only("new_vocab_size", embedding_size, "it must be embedding_size")?;
    fields.only("num_new_special_tokens", 0, "the layout's tokens are the tokenizer's reserved ones")?;
    fields.only("w_clip_vit", false, "a CLIP encoder is not served")?;
    fields.skip(&["llm_vocab_size"]);
    let codes = fields.size("codebook_size")?;
    let tokens = fields.size("num_vq_tokens")?;
    let side = tokens.isqrt();
    if side * side != tokens {
        return Err(refused("num_vq_tokens", &tokens.into(), "it must be the square of a grid's side"));
    }
    Ok(ImageFacts { codes, side, offset: fields.maybe_id("image_token_offset")? })
}

/// The fields of Qwen2.5 and Qwen3, and what Dream and SDAR add.
fn qwen(family: Family, fields: &mut Fields) -> Result<Facts, ModelError> {
    fields.only("hidden_act", "silu", "only silu is served")?;
    fields.only("rope_scaling", Value::Null, "scaled rotations are not served")?;
    fields.only("use_sliding_window", false, "only attention without a window is served")?;
    // What a window would be, and how others train.
    fields.skip(&["sliding_window", "max_window_layers"]);
    let mut variant = Variant { names: Names::Qwen, ..Variant::default() };
    match family {
        Family::Sdar => {
            fields.only("attention_bias", false, "projections with biases are not served in this family")?;
            fields.skip(&["debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep"]);
            variant.qk_norm = true;
            variant.head_dim = fields.maybe_size("head_dim")?;
            variant.pattern = Pattern::BlockCausal { block: fields.size("block_size")? };
        }
        _ => {
            fields.only("use_mrope", false, "rotations by several axes are not served")?;
            (variant.qkv_bias, variant.shifted) = (true, true);
        }
    }
    let n_heads = fields.size("num_attention_heads")?;
    let config = TransformerConfig {
        d_model: fields.size("hidden_size")?,
        n_layers: fields.size("num_hidden_layers")?,
        n_heads,
        n_kv_heads: fields.maybe_size("num_key_value_heads")?.unwrap_or(n_heads),
        mlp_hidden_size: fields.size("intermediate_size")?,
        embedding_size: fields.size("vocab_size")?,
        max_sequence_length: fields.size("max_position_embeddings")?,
        rms_norm_eps: fields.positive("rms_norm_eps", Some(1e-6))?,
        rope_theta: fields.positive("rope_theta", Some(10_000.0))?,
        weight_tying: fields.flag("tie_word_embeddings", false)?,
        variant,
    };
    Ok(Facts {
        family,
        config,
        mask_id: fields.id("mask_token_id", "add the id of the mask token")?,
        eos_id: fields.id("eos_token_id", "add the id that ends a text")?,
        image: None,
    })
}

#[cfg(test)]
#[path = "family_tests.rs"]
mod tests;
