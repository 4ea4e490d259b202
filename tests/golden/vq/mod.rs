//! Image codecs against the official code (MAGVIT-v2's `modeling_magvitv2.py`, diffusers' `VQModel`; torch 2.3.1, CPU,
//! f32): codes identical, pixels within 1e-4, and the published networks' tensor lists name by name.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use lacuna::models::ImageCodec;
use lacuna::models::fields::{self, Fields};
use lacuna::models::vq::magvit_v2::{self, MagvitV2};
use lacuna::models::vq::vq_model::{self, VqModel};
use lacuna::models::vq::{self, load, weights};
use serde_json::{Value, json};

use super::{folder, ids, json};

/// Largest difference of a value from the official code.
const TOLERANCE: f64 = 1e-4;

fn fields(folder_name: &str) -> Fields {
    vq::fields(fields::config(&folder(folder_name)).unwrap())
}

fn magvit() -> MagvitV2 {
    let name = "mmada/magvitv2";
    MagvitV2::load(fields(name), &weights(&folder(name)).unwrap(), &Device::Cpu).unwrap()
}

fn vq_model(variant: &str) -> VqModel {
    let name = format!("diffusers_vq/{variant}");
    VqModel::load(fields(&name), &weights(&folder(&name)).unwrap(), &Device::Cpu).unwrap()
}

/// Nested lists of numbers, flat.
fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn assert_close(what: &str, got: &Tensor, expected: &Value) {
    let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = flat(expected);
    assert_eq!(got.len(), expected.len(), "{what}");
    let differences = got.iter().zip(&expected).map(|(got, expected)| (f64::from(*got) - expected).abs());
    let largest = differences.fold(0.0, f64::max);
    println!("{what}: largest difference {largest:.1e} over {} values", got.len());
    assert!(largest < TOLERANCE, "{what}: differs by {largest}");
}

/// Pictures `[n][3][h][w]`.
fn pictures(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

#[test]
fn magvit_v2_decodes_as_the_official_code() {
    let codec = magvit();
    let golden = &json("mmada", "golden.json")["magvitv2"];
    let (square, wide) = (&golden["decode"], &golden["decode_2x4"]);
    for (case, grid) in [(square, (4, 4)), (wide, (2, 4))] {
        for (codes, pixels) in pictures(&case["codes"]).iter().zip(pictures(&case["pixels"])) {
            assert_close("magvitv2 decode", &codec.pixels(&ids(codes), grid).unwrap(), pixels);
        }
    }
    for (i, (codes, bytes)) in pictures(&square["codes"]).iter().zip(pictures(&square["u8_hwc"])).enumerate() {
        let picture = codec.decode(&ids(codes), (4, 4)).unwrap().into_raw();
        let official = flat(bytes);
        assert_eq!(picture.len(), official.len());
        for (at, (got, expected)) in picture.iter().zip(official).enumerate() {
            // Bytes are truncated, so where the value lies on a whole number the last bits decide.
            let value = (flat(&square["pixels"][i])[at % 3 * 64 + at / 3] + 1.0) / 2.0 * 255.0;
            let even = (value - value.round()).abs() < TOLERANCE * 255.0;
            assert!(f64::from(*got) == expected || even, "byte {at}: {got}, officially {expected} for {value}");
        }
    }
}

#[test]
fn magvit_v2_encodes_as_the_official_code() {
    let codec = magvit();
    let case = &json("mmada", "golden.json")["magvitv2"]["encode"];
    let pixels = &case["pixels"][0];
    let size = (3, pixels[0].as_array().unwrap().len(), pixels[0][0].as_array().unwrap().len());
    let values: Vec<f32> = flat(pixels).into_iter().map(|x| x as f32).collect();
    let input = Tensor::from_vec(values, size, &Device::Cpu).unwrap();
    let latent = codec.latent(&input).unwrap();
    assert_close("magvitv2 encode", &latent, &case["z"][0]);
    assert_eq!(codec.codes(&latent).unwrap(), ids(&case["codes"][0]));
}

#[test]
fn vq_model_decodes_as_the_official_code() {
    for variant in ["attn", "noattn"] {
        let codec = vq_model(variant);
        let case = &json("diffusers_vq", "golden.json")["decode"][variant];
        let side = (pictures(&case["codes"])[0].as_array().unwrap().len() as f64).sqrt() as usize;
        for (codes, pixels) in pictures(&case["codes"]).iter().zip(pictures(&case["pixels"])) {
            let got = codec.pixels(&ids(codes), (side, side)).unwrap();
            assert_close(&format!("diffusers_vq/{variant}"), &got, pixels);
        }
    }
}

#[test]
fn the_published_networks_have_exactly_the_expected_tensors() {
    let shapes = |value: &Value| -> BTreeMap<String, Vec<usize>> {
        let tensors = value.as_object().unwrap().iter().filter(|(name, _)| !name.starts_with('_'));
        tensors.map(|(name, shape)| (name.clone(), ids(shape).iter().map(|&n| n as usize).collect())).collect()
    };
    let published = shapes(&json("mmada", "magvitv2_full_tensors.json"));
    assert_eq!(published.len(), 382);
    // The published configuration holds no sizes.
    let bare = vq::fields(json!({"_class_name": "MAGVITv2"}).as_object().unwrap().clone());
    assert_same(&magvit_v2::Config::from_fields(bare).unwrap().tensors().unwrap(), &published);

    let amused = json("diffusers_vq", "amused_vq_tensors.json");
    let config = vq::fields(amused["_config_assumed"].as_object().unwrap().clone());
    let expected = vq_model::Config::from_fields(config).unwrap().tensors().unwrap();
    assert_same(&expected, &shapes(&amused));
}

fn assert_same(ours: &BTreeMap<String, Vec<usize>>, theirs: &BTreeMap<String, Vec<usize>>) {
    for (name, shape) in theirs {
        assert_eq!(ours.get(name), Some(shape), "{name}");
    }
    let unknown: Vec<_> = ours.keys().filter(|name| !theirs.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "not published: {unknown:?}");
}

#[test]
fn a_picture_does_not_depend_on_what_else_is_decoded() {
    let codec = load(&folder("mmada/magvitv2"), &Device::Cpu).unwrap();
    let codes = |seed: u32| -> Vec<u32> { (0..16).map(|i| (seed * 31 + i * 17) % 64).collect() };
    let alone: Vec<_> = (0..4).map(|seed| codec.decode(&codes(seed), (4, 4)).unwrap()).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let decode = |seed| codec.decode(&codes(seed), (4, 4)).unwrap();
        let workers: Vec<_> = (0..4).map(|seed| scope.spawn(move || decode(seed))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
    // A picture of exactly the codec's size goes in and comes out as codes of the codebook.
    let again = codec.encode(&alone[0], (4, 4)).unwrap();
    assert!(again.len() == 16 && again.iter().all(|&code| code < 64));
    // Any other size is brought to it.
    let scaled = image::imageops::resize(&alone[0], 50, 31, image::imageops::FilterType::Nearest);
    assert_eq!(codec.encode(&scaled, (2, 4)).unwrap().len(), 8);
}

/// Full size, random weights: how long a decode takes and how much memory. Run by hand, with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn full_size_decode_takes() {
    struct Random;
    impl lacuna::models::vq::tensors::Source for Random {
        fn tensor(&self, _: &str, shape: &[usize]) -> Result<Tensor, lacuna::models::ModelError> {
            let fan_in: usize = shape.iter().skip(1).product();
            Ok(Tensor::randn(0f32, 1.0 / (fan_in.max(1) as f32).sqrt(), shape, &Device::Cpu)?.to_dtype(DType::F32)?)
        }
        fn unused(&self, _: &str, _: &[usize]) {}
    }
    let side: usize = std::env::var("SIDE").map_or(16, |side| side.parse().unwrap());
    let codec = MagvitV2::new(magvit_v2::Config::default(), &Random, &Device::Cpu).unwrap();
    let codes: Vec<u32> = (0..side * side).map(|i| (i * 7919 % 8192) as u32).collect();
    let status = |field: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with(field)).unwrap().to_owned()
    };
    println!("loaded: {} {}", status("VmRSS"), status("VmHWM"));
    let begun = std::time::Instant::now();
    let picture = codec.decode(&codes, (side, side)).unwrap();
    println!("decode {}x{}: {:?}; {}", picture.width(), picture.height(), begun.elapsed(), status("VmHWM"));
    let begun = std::time::Instant::now();
    codec.encode(&picture, (side, side)).unwrap();
    println!("encode: {:?}; {}", begun.elapsed(), status("VmHWM"));
}
