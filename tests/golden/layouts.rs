//! Sequences around texts and images, against the official prompts with their padding taken out.

use lacuna::models::Model;
use lacuna::text::{Message, TextError};

use super::{ids, json, model, unpadded};

const IMAGE: usize = 16;

/// The frame of `prompt` with masks for an image.
fn sequence(model: &Model, prompt: &[u32]) -> Vec<u32> {
    let (before, after) = model.layout.image_frame(prompt);
    [before, vec![model.backbone.spec().mask_id; IMAGE], after].concat()
}

#[test]
fn image_prompts_are_the_official_ones() {
    let model = model("mmada");
    let golden = json("mmada", "golden.json");
    let prompt = &golden["prompt"];
    let official = |kind: &str, row: usize| {
        unpadded(&ids(&prompt[format!("{kind}_ids")][row]), &prompt[format!("{kind}_mask")][row]).0
    };
    let text = |row: usize| model.tokenizer.encode(prompt["texts"][row].as_str().unwrap()).unwrap();
    assert_eq!(sequence(&model, &text(0)), official("cond", 0));
    // The official code cuts a long prompt; whole, it has the same beginning.
    let (long, cut) = (sequence(&model, &text(1)), official("cond", 1));
    assert_eq!(long[..16], cut[..16]);
    assert_eq!(sequence(&model, &text(1)[..14]), cut);
    for row in 0..2 {
        assert_eq!(sequence(&model, &[]), official("uncond", row));
    }
    let spec = model.backbone.spec();
    let image = spec.image.as_ref().unwrap();
    assert_eq!((image.codes.clone(), image.grid), (300..364, (4, 4)));
    // A prompt that brings its own beginning keeps it.
    let bos = model.tokenizer.token_id("<|startoftext|>").unwrap();
    assert_eq!(sequence(&model, &[&[bos], &text(0)[..]].concat()), official("cond", 0));
}

#[test]
fn a_question_about_an_image_is_laid_out_as_the_official_one() {
    let model = model("mmada");
    let golden = json("mmada", "golden.json");
    let official = ids(&golden["mmu"]["input_ids"][0]);
    let codes: Vec<u32> = official[2..2 + IMAGE].iter().map(|id| id - 300).collect();
    let question = &official[3 + IMAGE..];
    assert_eq!(model.layout.seen_prefix(&codes, question).unwrap(), official);
    // The official question brings its beginning; one without gets it.
    assert_eq!(model.layout.seen_prefix(&codes, &question[1..]).unwrap(), official);
    assert!(super::model("llada").layout.seen_prefix(&codes, question).is_none());
}

#[test]
fn conversations_go_through_the_family_s_template() {
    let messages = [Message { role: "user".into(), content: "Hi".into() }];
    let rendered = |name: &str| {
        let model = model(name);
        let ids = model.layout.conversation(&model.tokenizer, &messages).unwrap();
        ids.iter().map(|&id| model.tokenizer.token(id).unwrap()).collect::<String>()
    };
    let llada = "<|startoftext|><|start_header_id|>user<|end_header_id|>ĊĊHi<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>ĊĊ";
    assert_eq!(rendered("llada"), llada);
    // MMaDA's programs write one line break where its tokenizer's template has two.
    assert_eq!(rendered("mmada"), llada.replace("ĊĊ", "Ċ"));
    let sdar = model("sdar");
    let error = sdar.layout.conversation(&sdar.tokenizer, &messages).unwrap_err();
    assert!(matches!(error, TextError::NoTemplate), "{error}");
}
