//! Logits within 1e-4 of the official ones, for every row that is not padding.

use lacuna::models::{Backbone, Packed};
use serde_json::Value;

use super::{FOLDERS, ids, json, model, unpadded};

const TOLERANCE: f64 = 1e-4;

/// Logits of sequences that share a batch: every position, all ids.
pub(super) fn logits(model: &dyn Backbone, sequences: &[Vec<u32>]) -> Vec<Vec<Vec<f32>>> {
    let mut packed = Packed::default();
    for ids in sequences {
        packed.push(ids, 0..ids.len() as u32);
    }
    let hidden = model.forward(&packed).unwrap();
    let rows = model.logits(&hidden, 0..model.spec().vocab_size as u32).unwrap().to_vec2::<f32>().unwrap();
    packed.spans.iter().map(|span| rows[span.start..span.start + span.len].to_vec()).collect()
}

/// The largest difference of a row from the official one.
fn difference(got: &[f32], expected: &Value) -> f64 {
    let expected = expected.as_array().unwrap();
    assert_eq!(got.len(), expected.len());
    let differences = got.iter().zip(expected).map(|(got, want)| (f64::from(*got) - want.as_f64().unwrap()).abs());
    differences.fold(0.0, f64::max)
}

/// What a folder says of one batch: padded ids, masks, and per sequence its rows of logits.
struct Case {
    ids: Vec<Vec<u32>>,
    masks: Value,
    rows: Vec<Vec<Value>>,
}

/// The largest difference of a batch. `shifted`: row i of what is computed is the official row before it.
fn compare(model: &dyn Backbone, case: &Case, shifted: bool) -> f64 {
    let sequences: Vec<_> = case.ids.iter().enumerate().map(|(i, ids)| unpadded(ids, &case.masks[i])).collect();
    let got = logits(model, &sequences.iter().map(|(ids, _)| ids.clone()).collect::<Vec<_>>());
    let mut worst: f64 = 0.0;
    for ((got, (_, pads)), expected) in got.iter().zip(&sequences).zip(&case.rows) {
        for (i, row) in got.iter().enumerate() {
            let official = if shifted { i.saturating_sub(1) } else { i };
            worst = worst.max(difference(row, &expected[pads + official]));
        }
    }
    worst
}

fn batch(value: &Value) -> Vec<Vec<u32>> {
    value.as_array().unwrap().iter().map(ids).collect()
}

/// The largest difference of all logits of a folder.
fn worst(name: &str) -> f64 {
    let model = model(name);
    let golden = json(name, "golden.json");
    let cases = match &golden["logits"] {
        Value::Array(cases) => cases.clone(),
        // One case, without being a list of one.
        case => vec![case.clone()],
    };
    let mut worst: f64 = 0.0;
    for case in &cases {
        let ids = batch(&case["input_ids"]);
        if let Some(rows) = case["logits"].as_array() {
            let rows = rows.iter().map(|r| r.as_array().unwrap().clone()).collect();
            let case = Case { ids, masks: case["attention_mask"].clone(), rows };
            worst = worst.max(compare(&*model.backbone, &case, name == "dream"));
        } else if case["logits_image_slice"].is_array() {
            worst = worst.max(image_slice(&model, case));
        } else {
            // A long sequence comes as its argmax everywhere and its last position.
            let got = &logits(&*model.backbone, &ids)[0];
            let best = |row: &Vec<f32>| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
            assert_eq!(got.iter().map(best).collect::<Vec<_>>(), super::ids(&case["logits_argmax"][0]), "{name}");
            let last = &case["logits_last"];
            let last = if last[0].is_array() { &last[0] } else { last };
            worst = worst.max(difference(got.last().unwrap(), last));
        }
    }
    worst
}

/// MMaDA: the codebook's logits at the image's positions, which end one before the sequence does.
fn image_slice(model: &lacuna::models::Model, case: &Value) -> f64 {
    let codes = model.backbone.spec().image.clone().unwrap().codes;
    let mut packed = Packed::default();
    for (ids, mask) in batch(&case["input_ids"]).iter().zip(case["mask"].as_array().unwrap()) {
        let (ids, _) = unpadded(ids, mask);
        let end = ids.len() as u32 - 1;
        packed.push(&ids, end - 16..end);
    }
    let hidden = model.backbone.forward(&packed).unwrap();
    let rows = model.backbone.logits(&hidden, codes).unwrap().to_vec2::<f32>().unwrap();
    let expected = case["logits_image_slice"].as_array().unwrap().iter().flat_map(|rows| rows.as_array().unwrap());
    rows.iter().zip(expected).map(|(got, want)| difference(got, want)).fold(0.0, f64::max)
}

#[test]
fn logits_are_the_official_ones() {
    for name in FOLDERS {
        let worst = worst(name);
        println!("{name}: {worst:.1e}");
        assert!(worst < TOLERANCE, "{name}: differs by {worst}");
    }
}

#[test]
fn a_sequence_does_not_know_its_neighbours() {
    for name in FOLDERS {
        let model = model(name);
        let sequence = |n: u32, len: u32| (0..len).map(|i| (i * 37 + n * 11) % 256).collect::<Vec<_>>();
        let sequences = [sequence(1, 23), sequence(2, 1), sequence(3, 40), sequence(4, 2)];
        let together = logits(&*model.backbone, &sequences);
        for (ids, together) in sequences.iter().zip(&together) {
            let alone = logits(&*model.backbone, std::slice::from_ref(ids));
            assert_eq!(&alone[0], together, "{name}: {} positions", ids.len());
        }
        // Fewer rows asked for, the same rows given.
        let mut packed = Packed::default();
        packed.push(&sequences[2], [0, 1, 7, 39]);
        let few = model.backbone.forward(&packed).unwrap();
        let few = model.backbone.logits(&few, 0..256).unwrap().to_vec2::<f32>().unwrap();
        for (row, position) in few.iter().zip([0, 1, 7, 39]) {
            assert_eq!(row[..], together[2][position][..256], "{name}: position {position}");
        }
    }
}
