//! What is read and what is refused, and that a refusal says why.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::models::lora::{Pair, Target};
use crate::models::shape::{TransformerConfig, Variant};

pub(crate) fn base() -> Base {
    let config = TransformerConfig {
        d_model: 8,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        mlp_hidden_size: 12,
        embedding_size: 10,
        max_sequence_length: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        weight_tying: false,
        variant: Variant::default(),
    };
    Base { model: "tiny".into(), sha256: "ab".repeat(32), config, device: Device::Cpu }
}

/// An adapter whose values are all `value`, of some modules.
pub(crate) fn lora(value: f32) -> Lora {
    let base = base();
    let full = |shape: (usize, usize)| Tensor::full(value, shape, &Device::Cpu).unwrap();
    let places = [(0, Target::Q), (0, Target::Down), (1, Target::K)];
    let pairs = places.map(|place| {
        let (out, width) = place.1.shape(&base.config);
        (place, Pair { a: full((2, width)), b: full((out, 2)) })
    });
    Lora::new(&base.config, 1.5, pairs.into()).unwrap()
}

pub(crate) fn files() -> PeftFiles {
    write(&lora(0.25), &base()).unwrap()
}

fn refusal(files: &PeftFiles) -> String {
    let error = read(files, &base(), &Limits::default()).unwrap_err().to_string();
    assert!(error.len() < 800, "{}", error.len());
    error
}

/// The refusal of an adapter whose settings are changed.
fn config_refusal(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> String {
    refusal(&PeftFiles { config: with_config(change), ..files() })
}

fn with_config(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
    let mut config: Value = serde_json::from_slice(&files().config).unwrap();
    change(config.as_object_mut().unwrap());
    serde_json::to_vec(&config).unwrap()
}

const Q_A: &str = "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight";

fn with_tensors(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Vec<u8> {
    let mut tensors = candle_core::safetensors::load_buffer(&files().model, &Device::Cpu).unwrap();
    change(&mut tensors);
    safetensors::serialize(tensors, None).unwrap()
}

/// The refusal of an adapter whose tensors are changed.
fn tensor_refusal(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> String {
    refusal(&PeftFiles { model: with_tensors(change), ..files() })
}

/// A file with the header `header` and `data` bytes of zeros.
fn with_header(header: &str, data: usize) -> PeftFiles {
    let mut model = (header.len() as u64).to_le_bytes().to_vec();
    model.extend(header.as_bytes());
    model.extend(vec![0; data]);
    PeftFiles { model, ..files() }
}

fn values(lora: &Lora) -> BTreeMap<(usize, Target), [Vec<Vec<f32>>; 2]> {
    let value = |tensor: &Tensor| tensor.to_vec2().unwrap();
    lora.pairs().iter().map(|(place, pair)| (*place, [value(&pair.a), value(&pair.b)])).collect()
}

#[test]
fn what_is_written_reads_back() {
    let (written, again) = (files(), files());
    assert!(written == again, "equal adapters give equal bytes");
    let lora = read(&written, &base(), &Limits::default()).unwrap();
    assert_eq!(lora.scale(), 1.5);
    assert_eq!(values(&lora), values(&super::tests::lora(0.25)));
    assert!(write(&lora, &base()).unwrap() == written);
}

#[test]
fn sixteen_bits_are_read() {
    for dtype in [DType::F16, DType::BF16] {
        let model = with_tensors(|t| t.values_mut().for_each(|t| *t = t.to_dtype(dtype).unwrap()));
        let lora = read(&PeftFiles { model, ..files() }, &base(), &Limits::default()).unwrap();
        assert_eq!(values(&lora), values(&super::tests::lora(0.25)), "{dtype:?}");
    }
    let refusal = tensor_refusal(|t| t.values_mut().for_each(|t| *t = t.to_dtype(DType::F64).unwrap()));
    assert!(refusal.contains("F64") && refusal.contains("BF16"), "{refusal}");
}

#[test]
fn scales_and_patterns_are_honoured() {
    let scale = |change: fn(&mut serde_json::Map<String, Value>)| {
        let files = PeftFiles { config: with_config(change), ..files() };
        let lora = read(&files, &base(), &Limits::default()).unwrap();
        let b = |layer, target| lora.pairs()[&(layer, target)].b.to_vec2::<f32>().unwrap()[0][0];
        (lora.scale(), f64::from(b(0, Target::Q)) * lora.scale(), f64::from(b(1, Target::K)) * lora.scale())
    };
    let close = |got: (f64, f64, f64), expected: (f64, f64, f64)| {
        let distance = (got.0 - expected.0).abs() + (got.1 - expected.1).abs() + (got.2 - expected.2).abs();
        assert!(distance < 1e-5, "{got:?}, expected {expected:?}");
    };
    let root = 2f64.sqrt();
    close(scale(|c| drop(c.insert("lora_alpha".into(), json!(5)))), (2.5, 0.25 * 2.5, 0.25 * 2.5));
    close(scale(|c| drop(c.insert("use_rslora".into(), json!(true)))), (3.0 / root, 0.75 / root, 0.75 / root));
    close(scale(|c| drop(c.insert("alpha_pattern".into(), json!({"q_proj": 8})))), (1.5, 0.25 * 4.0, 0.25 * 1.5));
    // The tensors' rank is 2 everywhere.
    let ranks = |c: &mut serde_json::Map<String, Value>| {
        c.insert("r".into(), json!(4));
        c.insert("lora_alpha".into(), json!(8));
        c.insert("rank_pattern".into(), json!({"blocks.0.q_proj": 2, "0.ff_out": 2, "k_proj": 2}));
    };
    close(scale(ranks), (2.0, 0.25 * 4.0, 0.25 * 4.0));
}

#[test]
fn settings_that_are_not_built_are_refused_by_name() {
    let cases = [
        ("peft_type", json!("LOHA"), "LORA"),
        ("peft_type", json!(null), "LORA"),
        ("bias", json!("all"), "bias"),
        ("bias", json!("lora_only"), "bias"),
        ("use_dora", json!(true), "DoRA"),
        ("modules_to_save", json!(["lm_head"]), "lm_head"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out"),
        ("lora_bias", json!(true), "lora_bias"),
        ("target_parameters", json!(["w"]), "target_modules"),
        ("trainable_token_indices", json!([1]), "trainable_token_indices"),
        ("layer_replication", json!([[0, 1]]), "layer_replication"),
        ("loftq_config", json!({"bits": 4}), "loftq_config"),
        ("init_lora_weights", json!("pissa"), "pissa"),
        ("use_rslora", json!("yes"), "use_rslora"),
        ("something_of_the_future", json!(3), "something_of_the_future"),
        ("target_modules", json!(["lm_head"]), "lm_head"),
        ("target_modules", json!([1]), "target_modules"),
        ("target_modules", json!(7), "target_modules"),
        ("r", json!(0), "at least 1"),
        ("r", json!(-2), "r = -2"),
        ("r", json!(2.5), "r = 2.5"),
        ("lora_alpha", json!(0), "lora_alpha = 0"),
        ("lora_alpha", json!(-1), "above 0"),
        ("lora_alpha", json!("2"), "above 0"),
        ("lora_alpha", json!(1e300), "scale"),
        ("rank_pattern", json!({"^q_proj": 2}), "^q_proj"),
        ("rank_pattern", json!({"lm_head": 2}), "lm_head"),
        ("rank_pattern", json!({"q_proj": 0}), "rank_pattern.q_proj"),
        ("rank_pattern", json!([2]), "rank_pattern"),
        ("alpha_pattern", json!({"q_proj": 0}), "alpha_pattern.q_proj"),
        ("alpha_pattern", json!({"q_proj": 2, "blocks.0.q_proj": 3}), "name it once"),
    ];
    for (field, value, part) in cases {
        let refusal = config_refusal(|c| drop(c.insert(field.into(), value.clone())));
        assert!(refusal.contains(part) && refusal.contains("adapter_config.json"), "{field} = {value}: {refusal}");
    }
    for field in ["peft_type", "r", "lora_alpha"] {
        assert!(config_refusal(|c| drop(c.remove(field))).contains(field));
    }
    let long = config_refusal(|c| drop(c.insert("x".repeat(5000), json!("y".repeat(5000)))));
    assert!(long.contains('…'), "{long}");
    // Inert values of fields that are not known change nothing.
    let config = with_config(|c| {
        c.extend([("a".into(), json!(null)), ("b".into(), json!(false)), ("c".into(), json!({}))]);
    });
    assert!(read(&PeftFiles { config, ..files() }, &base(), &Limits::default()).is_ok());
}

#[test]
fn settings_that_are_no_settings_are_refused() {
    for config in ["", "[]", "7", "{", r#"{"r": NaN}"#, "\u{feff}{}", &"[".repeat(10_000)] {
        let refusal = refusal(&PeftFiles { config: config.into(), ..files() });
        assert!(refusal.contains("adapter_config.json"), "{refusal}");
    }
    let text = String::from_utf8(files().config).unwrap();
    let twice = text.replacen('{', r#"{"r": 2, "#, 1);
    assert!(refusal(&PeftFiles { config: twice.into(), ..files() }).contains("twice"));
    let limits = Limits { config_bytes: 10, ..Limits::default() };
    let error = read(&files(), &base(), &limits).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json") && error.contains("limit is 10"), "{error}");
}

#[test]
fn truncated_and_extended_files_are_refused() {
    let whole = files().model;
    let header = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    for length in
        [0, 1, 7, 8, 9, 8 + header / 2, 8 + header - 1, 8 + header, 8 + header + 1, whole.len() / 2, whole.len() - 1]
    {
        let refusal = refusal(&PeftFiles { model: whole[..length].to_vec(), ..files() });
        assert!(refusal.contains("adapter_model.safetensors"), "{length}: {refusal}");
    }
    assert!(refusal(&PeftFiles { model: [whole, vec![0]].concat(), ..files() }).contains("not fully covered"));
    // A pickle, as older versions of PEFT wrote.
    refusal(&PeftFiles { model: b"PK\x03\x04\0\0\0\0\0\0\0\0adapter/data.pkl".to_vec(), ..files() });
}

#[test]
fn headers_are_bounded_and_unambiguous() {
    let info = |end: usize| format!(r#"{{"dtype":"F32","shape":[2,8],"data_offsets":[{},{end}]}}"#, end - 64);
    let twice = format!(r#"{{"{Q_A}":{},"{Q_A}":{}}}"#, info(64), info(64));
    let refused = refusal(&with_header(&twice, 64));
    assert!(refused.contains("twice"), "{refused}");
    let overlapping = format!(r#"{{"{Q_A}":{},"x":{}}}"#, info(64), info(64));
    refusal(&with_header(&overlapping, 64));
    refusal(&with_header(&format!(r#"{{"{Q_A}":{}}}"#, info(128)), 128));
    refusal(&with_header(r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, 8));
    refusal(&with_header(
        &format!(r#"{{"x":{{"dtype":"{}","shape":[1],"data_offsets":[0,4]}}}}"#, "z".repeat(9000)),
        4,
    ));
    refusal(&with_header("[]", 0));
    refusal(&with_header("\u{1}", 0));
    assert!(refusal(&with_header("{}", 0)).contains("missing"), "no tensors, but target_modules");

    let spaces = format!("{{{}}}", " ".repeat(1 << 20));
    let large = refusal(&with_header(&spaces, 0));
    assert!(large.contains("header") && large.contains("1048578") && large.contains("1048576"), "{large}");
    let mut endless = files();
    endless.model[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(&endless).contains("header"));
}

#[test]
fn files_and_ranks_are_bounded() {
    let refusal = |limits: Limits| read(&files(), &base(), &limits).unwrap_err().to_string();
    let large = refusal(Limits { file_bytes: 100, ..Limits::default() });
    assert!(large.contains("adapter_model.safetensors") && large.contains("limit is 100"), "{large}");
    let rank = refusal(Limits { max_rank: 1, ..Limits::default() });
    assert!(rank.contains("rank") && rank.contains("is 2, the limit is 1"), "{rank}");
    assert!(config_refusal(|c| drop(c.insert("r".into(), json!(257)))).contains("256"));
}

#[test]
fn tensors_must_be_exactly_those_of_the_base() {
    let full = |shape: (usize, usize)| Tensor::full(0.25f32, shape, &Device::Cpu).unwrap();
    for (shape, part) in [((2, 7), "[2, 7]"), ((3, 8), "[3, 8]"), ((8, 2), "[8, 2]"), ((0, 8), "[0, 8]")] {
        let refusal = tensor_refusal(|t| drop(t.insert(Q_A.into(), full(shape))));
        assert!(refusal.contains(Q_A) && refusal.contains(part) && refusal.contains("[2, 8]"), "{refusal}");
    }
    tensor_refusal(|t| drop(t.insert(Q_A.into(), full((16, 1)).flatten_all().unwrap())));
    for half in ["lora_A", "lora_B"] {
        let name = Q_A.replace("lora_A", half);
        let refusal = tensor_refusal(|t| drop(t.remove(&name)));
        assert!(refusal.contains(&name) && refusal.contains("missing"), "{refusal}");
    }
    let extra = [
        Q_A.replace("blocks.0", "blocks.2"),
        Q_A.replace("blocks.0", "blocks.00"),
        Q_A.replace("q_proj", "attn_norm"),
        Q_A.replace("blocks.0.q_proj", "ff_out"),
        Q_A.replace("lora_A.weight", "lora_magnitude_vector"),
        Q_A.replace("lora_A.weight", "lora_A.default.weight"),
        Q_A.replace("base_model.model.", ""),
        Q_A.replace("lora_A", "lora_embedding_A"),
        "optimizer".to_owned(),
    ];
    for name in extra {
        let refusal = tensor_refusal(|t| drop(t.insert(name.clone(), full((2, 8)))));
        assert!(refusal.contains(&name) && refusal.contains("blocks.N"), "{refusal}");
    }
    // Factors of a module that the settings do not name would be ignored by PEFT; a named module must be there.
    let unnamed = tensor_refusal(|t| {
        t.insert(Q_A.replace("blocks.0", "blocks.1"), full((2, 8)));
        t.insert(Q_A.replace("blocks.0", "blocks.1").replace("lora_A", "lora_B"), full((8, 2)));
    });
    assert!(unnamed.contains("blocks.1.q_proj") && unnamed.contains("target_modules"), "{unnamed}");
    let absent = config_refusal(|c| drop(c.insert("target_modules".into(), json!(["q_proj", "k_proj", "ff_out"]))));
    assert!(absent.contains("missing") && absent.contains(&Target::K.module(&base().config, 0)), "{absent}");
}

#[test]
fn values_are_finite_and_bounded() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for dtype in [DType::F32, DType::BF16] {
            let refusal = tensor_refusal(|t| {
                let mut values = vec![0.0f32; 16];
                values[11] = value;
                let tensor = Tensor::from_vec(values, (2, 8), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                t.insert(Q_A.into(), tensor);
            });
            assert!(refusal.contains(Q_A) && refusal.contains("[1, 3]") && refusal.contains("finite"), "{refusal}");
        }
    }
    let large = tensor_refusal(|t| drop(t.insert(Q_A.into(), Tensor::full(1e30f32, (2, 8), &Device::Cpu).unwrap())));
    assert!(large.contains("norm") && large.contains("1e4"), "{large}");
    let mut limits = Limits::default();
    assert!(read(&files(), &base(), &limits).is_ok());
    limits.max_norm = 0.5;
    assert!(read(&files(), &base(), &limits).is_err());
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let other = Base { sha256: "cd".repeat(32), ..base() };
    let refused = read(&files(), &other, &Limits::default()).unwrap_err().to_string();
    assert!(refused.contains(&other.sha256) && refused.contains(&base().sha256), "{refused}");
    let named = config_refusal(|c| drop(c.insert("revision".into(), json!("cd".repeat(32)))));
    assert!(named.contains("adapter_config.json") && named.contains(&other.sha256), "{named}");
    // A commit of a repository says nothing about the weights.
    let commit = with_config(|c| drop(c.insert("revision".into(), json!("main"))));
    assert!(read(&PeftFiles { config: commit, model: with_tensors(|_| ()) }, &other, &Limits::default()).is_ok());
}

#[test]
fn folders_are_read_without_following_links() {
    let dir = TempDir::new().unwrap();
    let missing = PeftFiles::from_dir(dir.path(), &Limits::default()).unwrap_err().to_string();
    assert!(missing.contains(CONFIG_FILE), "{missing}");
    let PeftFiles { model, config } = files();
    std::fs::write(dir.path().join(CONFIG_FILE), &config).unwrap();
    std::fs::write(dir.path().join("elsewhere"), &model).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("elsewhere", dir.path().join(MODEL_FILE)).unwrap();
        let link = PeftFiles::from_dir(dir.path(), &Limits::default()).unwrap_err().to_string();
        assert!(link.contains("link") && link.contains(MODEL_FILE), "{link}");
        std::fs::remove_file(dir.path().join(MODEL_FILE)).unwrap();
    }
    std::fs::rename(dir.path().join("elsewhere"), dir.path().join(MODEL_FILE)).unwrap();
    assert!(PeftFiles::from_dir(dir.path(), &Limits::default()).unwrap() == files());
    let small = Limits { file_bytes: 100, ..Limits::default() };
    assert!(PeftFiles::from_dir(dir.path(), &small).unwrap_err().to_string().contains("limit is 100"));
}
