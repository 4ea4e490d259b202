use proptest::prelude::*;

use super::super::fixture_tests::group;
use super::*;

fn groups() -> Vec<GroupInput> {
    vec![group(1, 2), group(2, 1)]
}

fn result(id: u128, reward: &str) -> String {
    format!("{{\"sample_id\":\"{}\",\"reward\":{reward}}}", Uuid::from_u128(id))
}

fn answer(results: &[String]) -> Result<Vec<Vec<Score>>, HookError> {
    answer_v1(format!("{{\"results\":[{}]}}", results.join(",")).as_bytes(), &groups(), Some([0.0, 1.0]))
}

fn reasons(scores: &[Vec<Score>]) -> Vec<&'static str> {
    scores.iter().flatten().map(|score| score.as_ref().map_or_else(HookError::reason, |_| "ok")).collect()
}

#[test]
fn results_find_their_samples_in_any_order() {
    let scores = answer(&[result(2000, "0.5"), result(1001, "null"), result(1000, "1")]).unwrap();
    assert_eq!(scores, vec![vec![Ok(Some(1.0)), Ok(None)], vec![Ok(Some(0.5))]]);
}

#[test]
fn a_lie_about_one_sample_costs_that_one() {
    let with =
        |reward: &str| reasons(&answer(&[result(1000, reward), result(1001, "0"), result(2000, "1")]).unwrap())[0];
    assert_eq!(with("NaN"), "not_finite");
    assert_eq!(with("-Infinity"), "not_finite");
    assert_eq!(with("Infinity"), "not_finite");
    assert_eq!(with("1.001"), "out_of_range");
    assert_eq!(with("-1e-9"), "out_of_range");
    assert_eq!(with("\"0.5\""), "protocol");
    assert_eq!(with("[1]"), "protocol");
    assert_eq!(with("0.5,\"error\":\"no GPU\""), "reported");
    assert_eq!(with("0.5,\"error\":null,\"sub_rewards\":{\"NaN\":NaN}"), "ok");
    let all = answer(&[result(1000, "NaN"), result(1001, "0"), result(2000, "1")]).unwrap();
    assert_eq!(reasons(&all), ["not_finite", "ok", "ok"]);
}

#[test]
fn wrong_twice_and_too_few_ids_are_told_apart() {
    let few = answer(&[result(1000, "1")]).unwrap();
    assert_eq!(reasons(&few), ["ok", "missing", "missing"]);
    let unknown = answer(&[result(1000, "1"), result(77, "1"), result(2000, "1")]).unwrap();
    assert_eq!(reasons(&unknown), ["ok", "unknown_id", "ok"]);
    let twice = answer(&[result(1000, "1"), result(1000, "1"), result(1001, "0"), result(2000, "1")]).unwrap();
    assert_eq!(reasons(&twice), ["duplicate_id", "ok", "ok"]);
    let shapeless = answer(&["7".to_owned(), "null".to_owned()]).unwrap();
    assert_eq!(reasons(&shapeless), ["unknown_id"; 3]);
}

#[test]
fn what_is_no_answer_at_all_is_one_error() {
    let error = |body: &[u8]| answer_v1(body, &groups(), None).unwrap_err();
    for body in [&b""[..], b"{}", b"[]", b"<html>", b"{\"results\":{}}", b"{\"results\":[", b"\xff\xfe", b"{\"a\":NaN}"]
    {
        assert_eq!(error(body).reason(), "protocol");
    }
    assert_eq!(error(b"{\"results\":[{\"reward\":1e999}]}"), HookError::NotFinite);
    let quoting = error(b"{\"results\":\"a secret prompt\"}").to_string();
    assert!(!quoting.contains("secret"), "{quoting}");
}

#[test]
fn openrlhf_is_by_position() {
    let ask = request_openrlhf(&groups());
    assert_eq!(ask["query"][0], "prompt 1completion 0");
    assert_eq!(ask["prompts"].as_array().unwrap().len(), 3);
    let read = |body: &str| answer_openrlhf(body.as_bytes(), &groups(), None);
    assert_eq!(
        read("{\"rewards\":[1,null,NaN],\"scores\":[0,0,0]}").unwrap(),
        vec![vec![Ok(Some(1.0)), Ok(None)], vec![Err(HookError::NotFinite)]]
    );
    assert_eq!(read("{\"rewards\":[1,2]}").unwrap_err().reason(), "protocol");
    assert_eq!(read("{\"rewards\":[1,2,3,4]}").unwrap_err().reason(), "protocol");
}

#[test]
fn a_request_carries_pictures_and_no_subject() {
    let mut groups = groups();
    let sample = &mut groups[0].samples[0];
    sample.picture = Some(RgbImage::new(2, 2).into());
    let subject = Some("who".to_owned());
    let value = crate::store::Value::Bool(true);
    sample.ratings.push(super::super::Rating { metric: "thumbs".to_owned(), value, subject });
    let ask = request_v1(Uuid::nil(), "judge", &groups);
    let first = &ask["groups"][0]["samples"][0];
    assert!(first["image"].as_str().unwrap().starts_with("data:image/png;base64,iVBOR"));
    assert_eq!(first["feedback"], json!([{ "metric": "thumbs", "value": true, "source": "user" }]));
    assert!(ask["groups"][1]["samples"][0].get("image").is_none());
}

proptest! {
    #[test]
    fn no_answer_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = answer_v1(&body, &groups(), None);
        let _ = answer_openrlhf(&body, &groups(), None);
    }

    #[test]
    fn quoting_changes_nothing_that_is_json(text in ".*") {
        let body = json!({ "NaN": text, "x": [-1.5, "Infinity"] }).to_string();
        let quoted = quote_nonfinite(body.as_bytes());
        prop_assert_eq!(quoted.as_ref(), body.as_bytes());
    }
}
