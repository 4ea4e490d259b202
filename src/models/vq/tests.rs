//! What does not fit is named; what is asked too much is refused.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::DType;
use serde_json::{Value, json};

use super::*;

const MAGVIT: &str = r#"{"_class_name": "MAGVITv2", "_diffusers_version": "0.30.1", "ch": 32, "ch_mult": [1, 1],
    "num_res_blocks": [1, 1], "z_channels": 4}"#;
const VQ_MODEL: &str = r#"{"_class_name": "VQModel", "block_out_channels": [32, 32], "latent_channels": 4,
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "num_vq_embeddings": 16, "lookup_from_codebook": true}"#;

fn fields(config: &Value) -> Fields {
    super::fields(config.as_object().unwrap().clone())
}

/// A codec's folder with small weights, changed.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(config: &Value, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Self {
        let wanted = match config["_class_name"].as_str().unwrap() {
            magvit_v2::CLASS => magvit_v2::Config::from_fields(fields(config)).unwrap().tensors().unwrap(),
            _ => vq_model::Config::from_fields(fields(config)).unwrap().tensors().unwrap(),
        };
        let ones = |shape: Vec<usize>| Tensor::full(0.1f32, shape, &Device::Cpu).unwrap();
        let mut tensors = wanted.into_iter().map(|(name, shape)| (name, ones(shape))).collect();
        change(&mut tensors);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        candle_core::safetensors::save(&tensors, folder.path().join("pytorch_model.safetensors")).unwrap();
        Self(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("pytorch_model.safetensors")
    }

    fn load(&self) -> Result<Arc<dyn ImageCodec>, ModelError> {
        load(self.0.path(), &Device::Cpu)
    }

    fn refusal(&self) -> String {
        self.load().err().unwrap().to_string()
    }
}

fn config(text: &str, change: &Value) -> Value {
    let mut config: Value = serde_json::from_str(text).unwrap();
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    config
}

#[test]
fn fields_are_honoured_or_refused_by_name() {
    for (class, field, value) in [
        (MAGVIT, "ch", json!(40)),
        (MAGVIT, "ch", json!("32")),
        (MAGVIT, "ch", json!(0)),
        (MAGVIT, "num_res_blocks", json!([1, 1, 1])),
        (MAGVIT, "ch_mult", json!(vec![1; 9])),
        (MAGVIT, "z_channels", json!(21)),
        (MAGVIT, "codebook_dim", json!(13)),
        (MAGVIT, "attn_resolutions", json!([128])),
        (MAGVIT, "dropout", json!(0.1)),
        (VQ_MODEL, "act_fn", json!("gelu")),
        (VQ_MODEL, "norm_type", json!("spatial")),
        (VQ_MODEL, "norm_num_groups", json!(5)),
        (VQ_MODEL, "out_channels", json!(4)),
        (VQ_MODEL, "up_block_types", json!(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])),
        (VQ_MODEL, "lookup_from_codebook", json!(false)),
        (VQ_MODEL, "lookup_from_codebook", Value::Null),
        (VQ_MODEL, "mid_block_add_attention", json!("yes")),
        (VQ_MODEL, "vq_embed_dim", json!(1_000_000)),
        (VQ_MODEL, "shift_factor", json!(1)),
    ] {
        let fields = fields(&config(class, &json!({field: value})));
        let refusal = match class {
            MAGVIT => magvit_v2::Config::from_fields(fields).err(),
            _ => vq_model::Config::from_fields(fields).err(),
        };
        let refusal = refusal.unwrap_or_else(|| panic!("{field} = {value} is taken")).to_string();
        let named = if field == "norm_num_groups" { "block_out_channels" } else { field };
        assert!(refusal.starts_with("config.json: ") && refusal.contains(named), "{refusal}");
    }
    let other = Folder::new(&config(MAGVIT, &json!({})), |_| ());
    std::fs::write(other.0.path().join("config.json"), r#"{"_class_name": "AutoencoderKL"}"#).unwrap();
    assert!(other.refusal().contains("AutoencoderKL") && other.refusal().contains("MAGVITv2"), "{}", other.refusal());
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    const GAIN: &str = "decoder.norm_out.weight";
    let refusal = |change: fn(&mut HashMap<String, Tensor>)| Folder::new(&config(MAGVIT, &json!({})), change).refusal();
    let missing = refusal(|t| drop(t.remove(GAIN)));
    assert!(missing.contains(GAIN) && missing.contains("[32]") && missing.contains("missing"), "{missing}");
    let unknown = refusal(|t| drop(t.insert("decoder.up.7.x".into(), t[GAIN].clone())));
    assert!(unknown.contains("decoder.up.7.x"), "{unknown}");
    let shape = refusal(|t| drop(t.insert(GAIN.into(), Tensor::ones(31, DType::F32, &Device::Cpu).unwrap())));
    assert!(shape.contains(GAIN) && shape.contains("[31]") && shape.contains("[32]"), "{shape}");
    let nan = refusal(|t| drop(t.insert(GAIN.into(), Tensor::full(f32::NAN, 32, &Device::Cpu).unwrap())));
    assert!(nan.contains(GAIN) && nan.contains("not finite"), "{nan}");
    let dtype = refusal(|t| drop(t.insert(GAIN.into(), Tensor::ones(32, DType::U8, &Device::Cpu).unwrap())));
    assert!(dtype.contains(GAIN) && dtype.contains("U8"), "{dtype}");
}

#[test]
fn files_that_are_not_whole_are_refused() {
    let folder = Folder::new(&config(MAGVIT, &json!({})), |_| ());
    let whole = std::fs::read(folder.file()).unwrap();
    let refusal = |bytes: &[u8]| {
        std::fs::write(folder.file(), bytes).unwrap();
        folder.refusal()
    };
    assert!(refusal(&whole[..whole.len() - 1]).contains("download it again"));
    assert!(refusal(&whole[..5]).contains("not a safetensors file"));
    assert!(refusal(&[0xff; 64]).contains("not a safetensors file"));
    assert!(refusal(&[8, 0, 0, 0, 0, 0, 0, 0, b'{', 1, 2, 3, 4, 5, 6, 7]).contains("malformed"));
    std::fs::remove_file(folder.file()).unwrap();
    assert!(folder.refusal().contains("pytorch_model.safetensors"), "{}", folder.refusal());
}

#[test]
fn codes_and_grids_are_bounded() {
    let magvit = Folder::new(&config(MAGVIT, &json!({})), |_| ()).load().unwrap();
    // The encoder of a VQModel may be in the file; it is left there.
    let vq = Folder::new(&config(VQ_MODEL, &json!({})), |t| {
        drop(t.insert("encoder.conv_in.bias".into(), Tensor::ones(3, DType::F32, &Device::Cpu).unwrap()));
    });
    let vq = vq.load().unwrap();
    for codec in [&magvit, &vq] {
        assert_eq!(codec.decode(&[0, 15, 3], (1, 3)).unwrap().dimensions(), (6, 2));
        let refusal = |codes: &[u32], grid| codec.decode(codes, grid).err().unwrap().to_string();
        assert!(refusal(&[0, 16], (1, 2)).contains("codes[1] = 16"));
        assert!(refusal(&[0; 3], (2, 2)).contains("3 for a grid of 2×2"));
        assert!(refusal(&[], (0, 0)).contains("0×0"));
        assert!(refusal(&[], (usize::MAX, 2)).contains("4096"));
        assert!(refusal(&[0; MAX_CODES + 1], (1, MAX_CODES + 1)).contains("4096"));
    }
    assert!(vq.encode(&RgbImage::new(2, 2), (1, 1)).is_err());
    assert!(magvit.encode(&RgbImage::new(0, 0), (1, 1)).is_err());
    assert!(magvit.encode(&RgbImage::new(4, 4), (65, 64)).is_err());
}
