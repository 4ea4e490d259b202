use serde_json::{Value, json};

use super::super::fixture_tests::sample;
use super::*;

const GOLDEN: &str = include_str!("../../../../tests/golden/maskgrpo/rewards.json");

fn score(rule: &Builtin, text: &str, metadata: Value) -> Score {
    let mut sample = sample(1, text);
    sample.metadata = metadata;
    rule.score("", &sample)
}

fn wanted(extract: Extract) -> Wanted {
    Wanted { extract, ..Wanted::default() }
}

fn right(rule: &Builtin, text: &str, answer: &str) -> bool {
    score(rule, text, json!({ "answer": answer })).unwrap() == Some(1.0)
}

/// The official code takes a text without a box as its own answer, and compares without trimming. Both are wanted
/// differently here; everything else agrees.
#[test]
fn boxed_answers_agree_with_the_official_rewards() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let boxed = Builtin::Answer(wanted(Extract::Boxed));
    let mut compared = 0;
    for case in golden["gsm8k"].as_array().unwrap() {
        let (text, answer) = (case["response"].as_str().unwrap(), case["answer"].as_str().unwrap());
        if !text.contains("\\boxed") || text.contains("{ ") {
            continue;
        }
        assert_eq!(right(&boxed, text, answer), case["correctness"] == 2.0, "{text} against {answer}");
        compared += 1;
    }
    assert_eq!(compared, 19);
    assert!(right(&boxed, "\\boxed{ 8 }", "8"), "white space is no mistake");
    assert!(!right(&boxed, "12", "12"), "nothing is boxed");
}

#[test]
fn tags_agree_with_the_official_extraction() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    for case in golden["gsm8k"].as_array().unwrap() {
        let text = case["response"].as_str().unwrap();
        if let Some(found) = Extract::Tag.answer(text) {
            assert_eq!(found.trim(), case["xml_answer"], "{text}");
        }
    }
    assert_eq!(Extract::Tag.answer("<answer>5"), None);
}

/// The official code reads from the first mark to the end; here the last mark counts, and its line only.
#[test]
fn hash_answers_agree_where_there_is_one_mark_and_line() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    for case in golden["hash_answer"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        if text.matches("####").count() < 2 && !text.contains('\n') {
            assert_eq!(Extract::Hash.answer(text).map(str::trim), case["result"].as_str(), "{text}");
        }
    }
    assert_eq!(Extract::Hash.answer("#### 5 #### 6"), Some(" 6"));
    assert_eq!(Extract::Hash.answer("a #### 1,234\nb"), Some(" 1,234"));
}

/// In the official code a missing answer equals a missing reference, and an empty one an empty one.
#[test]
fn two_absent_answers_are_not_equal() {
    let boxed = Builtin::Answer(wanted(Extract::Boxed));
    for metadata in [json!({}), json!({ "answer": null }), json!(null), json!({ "answer": [] })] {
        assert_eq!(score(&boxed, "nothing boxed", metadata).unwrap_err().reason(), "unusable");
    }
    assert_eq!(score(&boxed, "nothing boxed", json!({ "answer": "" })), Ok(Some(0.0)));
    assert_eq!(score(&boxed, "broken \\boxed{3", json!({ "answer": "3" })), Ok(Some(0.0)));
}

#[test]
fn numbers_are_read_as_people_write_them() {
    for (text, value) in [
        ("-3", -3.0),
        ("−3", -3.0),
        ("+5", 5.0),
        ("1,000", 1000.0),
        ("12,345,678.5", 12_345_678.5),
        ("3.0", 3.0),
        (".5", 0.5),
        ("$4", 4.0),
        (" 8 ", 8.0),
        ("1e3", 1000.0),
        ("5.", 5.0),
        ("007", 7.0),
    ] {
        assert_eq!(answer::number(text), Some(value), "{text}");
    }
    for text in [
        "", "-", ".", "1,00", "1,0000", ",1", "1,", "1.2.3", "3 4", "NaN", "inf", "infinity", "²", "٣", "--3", "1e999",
        "0x10", "e3",
    ] {
        assert_eq!(answer::number(text), None, "{text}");
    }
    for (text, value) in [
        ("so it is 1,000.", 1000.0),
        ("7-4", 4.0),
        ("7 - -4", -4.0),
        ("x = -3", -3.0),
        ("(2)-1", 1.0),
        ("$5.50 each", 5.5),
        ("1, 2, 3", 3.0),
        ("1,2", 2.0),
        ("12 apples", 12.0),
        ("−3", -3.0),
        ("é3", 3.0),
    ] {
        assert_eq!(answer::last_number(text), Some(value), "{text}");
    }
    assert_eq!(answer::last_number("none"), None);
    assert_eq!(answer::last_number("version 1.2.3"), None);
}

#[test]
fn numeric_answers_have_a_tolerance() {
    let number = |extract, tolerance| Builtin::Number { wanted: wanted(extract), tolerance };
    assert!(right(&number(Extract::Last, 0.0), "that makes 1,000", "1000"));
    assert!(right(&number(Extract::Last, 0.0), "8.0", "8"));
    assert!(right(&number(Extract::Hash, 0.0), "3 + 4 = 7 #### 7", "7"));
    assert!(!right(&number(Extract::Hash, 0.0), "7", "7"), "not marked");
    assert!(!right(&number(Extract::Hash, 0.0), "#### 7 or 8", "7"), "hedged");
    assert!(!right(&number(Extract::Last, 0.0), "3.14", "3.14159"));
    assert!(right(&number(Extract::Last, 0.01), "3.14", "3.14159"));
    assert_eq!(score(&number(Extract::Last, 0.0), "7", json!({ "answer": 7 })), Ok(Some(1.0)));
    assert_eq!(score(&number(Extract::Last, 0.0), "7", json!({ "answer": "seven" })).unwrap_err().reason(), "unusable");
    let fixed = Builtin::Answer(Wanted { fixed: Some("yes".to_owned()), ..Wanted::default() });
    assert_eq!(score(&fixed, " yes\n", json!({})), Ok(Some(1.0)));
}

#[test]
fn length_and_repetition_are_graded() {
    let of = |rule: Builtin, text: &str| score(&rule, text, json!({})).unwrap().unwrap();
    assert_eq!(of(Builtin::Length { min: 2, max: 4 }, "äöü"), 1.0);
    assert_eq!(of(Builtin::Length { min: 4, max: 8 }, "ab"), 0.5);
    assert_eq!(of(Builtin::Length { min: 0, max: 4 }, "abcdefgh"), 0.5);
    assert_eq!(of(Builtin::Length { min: 0, max: 0 }, ""), 1.0);
    assert_eq!(of(Builtin::Repetition { n: 2 }, "a b c d"), 1.0);
    assert_eq!(of(Builtin::Repetition { n: 1 }, "a a a a"), 0.25);
    assert_eq!(of(Builtin::Repetition { n: 3 }, "too short"), 1.0);
}

#[test]
fn texts_match_patterns_and_pictures_are_left_out() {
    let rule = Builtin::Regex(Regex::new("^[a-z]+$").unwrap());
    assert_eq!(score(&rule, "abc", json!({})), Ok(Some(1.0)));
    assert_eq!(score(&rule, "abc1", json!({})), Ok(Some(0.0)));
    let mut picture = sample(1, "");
    picture.picture = Some(image::RgbImage::new(1, 1).into());
    assert_eq!(rule.score("", &picture), Ok(None));
}

#[test]
fn schemas_hold() {
    let schema = json!({
        "type": "object", "title": "a person", "required": ["name"], "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "minLength": 1, "maxLength": 5, "pattern": "^[A-Z]" },
            "age": { "type": "integer", "minimum": 0, "exclusiveMaximum": 150 },
            "tags": { "type": "array", "items": { "enum": ["a", "b", 1] }, "maxItems": 2 },
            "id": { "anyOf": [{ "type": "null" }, { "const": 7 }] },
            "kind": { "not": { "type": ["array", "object"] } },
        },
    });
    let rule = Builtin::Json(Some(Schema::new(&schema).unwrap()));
    let holds = |text: &str| score(&rule, text, json!({})).unwrap() == Some(1.0);
    for good in [
        r#"{"name":"Ann"}"#,
        r#" {"name":"Ünal","age":149.0} "#.replace('Ü', "U").as_str(),
        r#"{"name":"A","tags":["a",1.0],"id":7,"kind":null}"#,
        r#"{"name":"A","id":null}"#,
    ] {
        assert!(holds(good), "{good}");
    }
    for bad in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"name":""}"#,
        r#"{"name":"ann"}"#,
        r#"{"name":"Annabel"}"#,
        r#"{"name":"A","age":1.5}"#,
        r#"{"name":"A","age":150}"#,
        r#"{"name":"A","age":-1}"#,
        r#"{"name":"A","tags":["c"]}"#,
        r#"{"name":"A","tags":["a","a","a"]}"#,
        r#"{"name":"A","id":8}"#,
        r#"{"name":"A","kind":[]}"#,
        r#"{"name":"A","other":1}"#,
        r#"{"name":"A"} and more"#,
    ] {
        assert!(!holds(bad), "{bad}");
    }
    for unsupported in [
        json!({ "$ref": "#" }),
        json!({ "type": "text" }),
        json!({ "minimum": "1" }),
        json!({ "pattern": "(" }),
        json!({ "properties": { "a": { "if": {} } } }),
        json!([]),
        json!({ "patternProperties": {} }),
    ] {
        assert!(Schema::new(&unsupported).is_err(), "{unsupported}");
    }
    let any = Builtin::Json(None);
    assert_eq!(score(&any, "[1, 2]", json!({})), Ok(Some(1.0)));
    assert_eq!(score(&any, "[1, 2", json!({})), Ok(Some(0.0)));
}
