//! The published configurations: every field is accepted, and the shapes add up to the published sizes.

use serde_json::{Value, json};

use super::*;
use crate::models::shape::parameters;

fn read(config: Value) -> Result<Facts, ModelError> {
    let Value::Object(map) = config else { panic!("no object") };
    Facts::read(map)
}

fn llada() -> Value {
    const FILE: &str = r#"{
        "activation_type": "silu", "alibi": false, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0, "attention_layer_norm": false, "attention_layer_norm_with_affine": true,
        "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}, "bias_for_layer_norm": false, "block_group_size": 1,
        "block_type": "llama", "d_model": 4096, "embedding_dropout": 0.0, "embedding_size": 126464,
        "eos_token_id": 126081, "flash_attention": false, "include_bias": false, "include_qkv_bias": false,
        "init_cutoff_factor": null, "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02,
        "input_emb_norm": false, "layer_norm_type": "rms", "layer_norm_with_affine": true, "mask_token_id": 126336,
        "max_sequence_length": 4096, "mlp_hidden_size": 12288, "mlp_ratio": 4, "model_type": "llada",
        "multi_query_attention": null, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32, "pad_token_id": 126081,
        "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-5, "rope": true,
        "rope_full_precision": true, "rope_theta": 500000.0, "scale_logits": false, "transformers_version": "4.46.3",
        "use_cache": false, "vocab_size": 126464, "weight_tying": false
    }"#;
    serde_json::from_str(FILE).unwrap()
}

fn with(mut config: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("no object") };
    config.as_object_mut().unwrap().extend(fields);
    config
}

fn dream() -> Value {
    const FILE: &str = r#"{
        "architectures": ["DreamModel"], "attention_dropout": 0.0, "auto_map": {}, "bos_token_id": 151643,
        "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 18944, "mask_token_id": 151666, "max_position_embeddings": 131072,
        "max_window_layers": 28, "model_type": "Dream", "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "pad_token_id": 151643, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
        "vocab_size": 152064
    }"#;
    serde_json::from_str(FILE).unwrap()
}

fn sdar() -> Value {
    const FILE: &str = r#"{
        "architectures": ["SDARForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "auto_map": {},
        "attn_implementation": "flex_attention", "block_size": 4, "bos_token_id": 151643, "debug": false,
        "ep_size": 1, "eos_token_id": 151643, "fuse_cross_entropy": true, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12288, "mask_token_id": 151669,
        "max_position_embeddings": 32768, "max_window_layers": 36, "micro_forward": false, "model_type": "sdar",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_scaling": null, "rope_theta": 1000000, "skip_checkpoint": false, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true, "use_deepep": false,
        "use_sliding_window": false, "vocab_size": 151936
    }"#;
    serde_json::from_str(FILE).unwrap()
}

#[test]
fn published_configurations_add_up_to_the_published_sizes() {
    let illada = json!({
        "n_kv_heads": 8, "weight_tying": true, "mlp_hidden_size": 14336, "vocab_size": 155136, "embedding_size": 155136,
        "max_sequence_length": 8192, "mask_token_id": 5,
    });
    let mmada = json!({
        "architectures": ["MMadaModelLM"], "model_type": "mmada", "vocab_size": 134656, "embedding_size": 134656,
        "new_vocab_size": 134656, "llm_vocab_size": 126464, "codebook_size": 8192, "num_vq_tokens": 1024,
        "num_new_special_tokens": 0, "tie_word_embeddings": false,
    });
    let small = json!({"hidden_size": 2560, "intermediate_size": 9728});
    // Tensors, and gigabytes in bf16 or billions of parameters.
    for (config, tensors, gb, mask) in [
        (llada(), 291, 16.03, 126336),
        (with(llada(), illada), 290, 15.2, 5),
        (with(llada(), mmada), 291, 16.17, 126336),
        (dream(), 339, 15.23, 151666),
        (sdar(), 399, 16.38, 151669),
        (with(sdar(), small), 399, 8.8, 151669),
    ] {
        let facts = read(config.clone()).unwrap_or_else(|e| panic!("{e}: {config}"));
        assert_eq!((facts.config.tensors().len(), facts.mask_id), (tensors, mask), "{config}");
        let bytes = 2.0 * parameters(&facts.config) as f64 / 1e9;
        assert!((bytes - gb).abs() < 0.06, "{bytes} GB of {gb}: {config}");
    }
}

#[test]
fn every_field_that_changes_the_model_is_honoured_or_refused() {
    let config = |fields: Value| read(with(llada(), fields)).unwrap().config;
    assert_eq!(config(json!({"n_kv_heads": null})).n_kv_heads, 32);
    assert_eq!(config(json!({"n_kv_heads": null, "multi_query_attention": true})).n_kv_heads, 1);
    assert_eq!(config(json!({"mlp_hidden_size": null})).mlp_hidden_size, 16384);
    assert_eq!(config(json!({"embedding_size": null})).embedding_size, 126464);
    assert!(config(json!({"include_qkv_bias": true})).variant.qkv_bias);
    assert!(config(json!({"scale_logits": true})).variant.scale_logits);
    for (base, refused) in [
        (llada(), json!({"alibi": true})),
        (llada(), json!({"rope": false})),
        (llada(), json!({"rope_full_precision": false})),
        (llada(), json!({"block_type": "sequential"})),
        (llada(), json!({"block_group_size": 4})),
        (llada(), json!({"layer_norm_type": "default"})),
        (llada(), json!({"layer_norm_with_affine": false})),
        (llada(), json!({"bias_for_layer_norm": true})),
        (llada(), json!({"attention_layer_norm": true})),
        (llada(), json!({"input_emb_norm": true})),
        (llada(), json!({"include_bias": true})),
        (llada(), json!({"activation_type": "swiglu"})),
        (llada(), json!({"multi_query_attention": true})),
        (llada(), json!({"embedding_size": 100})),
        (llada(), json!({"tie_word_embeddings": true})),
        (llada(), json!({"rope_theta": 0})),
        (llada(), json!({"rms_norm_eps": -1.0})),
        (dream(), json!({"hidden_act": "gelu"})),
        (dream(), json!({"rope_scaling": {"type": "yarn", "factor": 4.0}})),
        (dream(), json!({"use_sliding_window": true})),
        (dream(), json!({"use_mrope": true})),
        (sdar(), json!({"attention_bias": true})),
        (sdar(), json!({"block_size": 0})),
        (sdar(), json!({"num_experts": 128})),
    ] {
        let field = refused.as_object().unwrap().keys().next().unwrap().clone();
        let error = read(with(base, refused)).unwrap_err().to_string();
        assert!(error.contains(&field), "{field}: {error}");
    }
}
