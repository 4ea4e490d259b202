//! The verifiers of the built-in tasks as reward rules.

use std::sync::Arc;

use super::{scenes, words};
use crate::rl::reward::{HookError, Rule, Rules, SampleInput, Score};

/// Key of a request's metadata that holds the answer of a word problem.
pub const ANSWER_KEY: &str = "answer";

/// The rules by their names in a configuration: `scene_strict` and `scene_soft` judge pictures by their captions,
/// `words_answer` and `words_chain` solutions by the answer in the request's metadata.
#[must_use]
pub fn rules() -> Rules {
    let rule = |name, rule: StarterRule| (name, Arc::new(rule) as Arc<dyn Rule>);
    Rules::from([
        rule("scene_strict", StarterRule::SceneStrict),
        rule("scene_soft", StarterRule::SceneSoft),
        rule("words_answer", StarterRule::WordsAnswer),
        rule("words_chain", StarterRule::WordsChain),
    ])
}

/// One of the built-in verifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StarterRule {
    /// 1 if the picture is just what the caption says.
    SceneStrict,
    /// The share of the caption that the picture shows.
    SceneSoft,
    /// 1 if the number after the last `####` is right.
    WordsAnswer,
    /// 1 if that number is what true equations lead to, right or not.
    WordsChain,
}

impl Rule for StarterRule {
    fn score(&self, prompt: &str, sample: &SampleInput) -> Score {
        match self {
            Self::SceneStrict => Ok(scene(prompt, sample)?.map(|verdict| f64::from(u8::from(verdict.strict)))),
            Self::SceneSoft => Ok(scene(prompt, sample)?.map(|verdict| f64::from(verdict.soft))),
            Self::WordsAnswer => Ok(solution(sample)?.map(|verdict| f64::from(u8::from(verdict.correct)))),
            Self::WordsChain => Ok(solution(sample)?.map(|verdict| f64::from(u8::from(verdict.chain_ok)))),
        }
    }
}

/// Applies to pictures whose prompt is a caption of the grammar.
fn scene(prompt: &str, sample: &SampleInput) -> Result<Option<scenes::verify::Verdict>, HookError> {
    let (Some(picture), Some(spec)) = (&sample.picture, scenes::caption::parse(prompt)) else { return Ok(None) };
    let image = picture.get().ok_or(HookError::Unusable("codes are no picture"))?;
    Ok(Some(scenes::verify::verify(image, &spec)))
}

/// Applies to texts. A request without the answer is an error rather than a wrong answer.
fn solution(sample: &SampleInput) -> Result<Option<words::Verdict>, HookError> {
    if sample.picture.is_some() {
        return Ok(None);
    }
    let answer = sample.metadata.get(ANSWER_KEY).and_then(|value| match value {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        other => other.as_i64(),
    });
    let answer = answer.ok_or(HookError::Unusable("metadata holds no whole number as answer"))?;
    Ok(Some(words::verify(&sample.text, answer)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::diffusion::rng::Stream;
    use crate::rl::reward::Picture;
    use crate::starter::scenes::codec::Codec;
    use crate::starter::scenes::sample::{Split, sample_any};

    fn sample(text: &str, picture: Option<Picture>, metadata: serde_json::Value) -> SampleInput {
        let (id, finish_reason) = (Uuid::nil(), "stop".to_owned());
        SampleInput { id, text: text.to_owned(), picture, finish_reason, adapter: None, ratings: Vec::new(), metadata }
    }

    #[test]
    fn a_drawn_scene_is_right_and_another_one_is_not() {
        let mut stream = Stream::new(7, 0);
        let codec = Arc::new(Codec::new());
        for _ in 0..20 {
            let example = sample_any(&mut stream, Split::Train);
            let other = sample_any(&mut stream, Split::Train);
            let (codec, codes) = (Arc::clone(&codec), example.scene.codes(&codec));
            let picture = Picture::lazy(move || codec.decode(&codes).ok());
            let drawn = sample("", Some(picture), json!({}));
            let caption = example.spec.caption();
            assert_eq!(StarterRule::SceneStrict.score(&caption, &drawn), Ok(Some(1.0)), "{caption}");
            assert_eq!(StarterRule::SceneSoft.score(&caption, &drawn), Ok(Some(1.0)), "{caption}");
            let wrong = StarterRule::SceneSoft.score(&other.spec.caption(), &drawn).unwrap().unwrap();
            assert!((0.0..=1.0).contains(&wrong));
            assert_eq!(StarterRule::SceneStrict.score("who are you ?", &drawn), Ok(None));
        }
    }

    #[test]
    fn solutions_are_judged_by_the_metadata() {
        let judge = |rule: StarterRule, text: &str, metadata| rule.score("", &sample(text, None, metadata));
        let right = "3 + 4 = 7 #### 7";
        assert_eq!(judge(StarterRule::WordsAnswer, right, json!({ "answer": 7 })), Ok(Some(1.0)));
        assert_eq!(judge(StarterRule::WordsAnswer, right, json!({ "answer": "7" })), Ok(Some(1.0)));
        assert_eq!(judge(StarterRule::WordsAnswer, right, json!({ "answer": 8 })), Ok(Some(0.0)));
        assert_eq!(judge(StarterRule::WordsChain, right, json!({ "answer": 8 })), Ok(Some(1.0)));
        assert_eq!(judge(StarterRule::WordsChain, "3 + 4 = 8 #### 8", json!({ "answer": 8 })), Ok(Some(0.0)));
        for metadata in [json!({}), json!(null), json!({ "answer": 7.5 }), json!({ "answer": "seven" })] {
            assert_eq!(judge(StarterRule::WordsAnswer, right, metadata).unwrap_err().reason(), "unusable");
        }
        let picture = sample("", Some(Picture::lazy(|| None)), json!({ "answer": 7 }));
        assert_eq!(StarterRule::WordsAnswer.score("", &picture), Ok(None));
        assert_eq!(StarterRule::SceneSoft.score("a red circle", &picture).unwrap_err().reason(), "unusable");
    }
}
