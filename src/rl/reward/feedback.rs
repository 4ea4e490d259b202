//! What people said as a score: a declared metric's values as numbers, and the ratings of one completion as one.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::config::{Metric, MetricType, Optimize};
use super::{GroupInput, HookError, Rating, RewardHook, SampleInput, Score};
use crate::store::Value;

/// A feedback metric as a hook.
pub struct Feedback {
    name: String,
    metric: String,
    declared: Metric,
}

impl Feedback {
    /// The hook called `name`, reading ratings of `metric`.
    #[must_use]
    pub fn new(name: String, metric: String, declared: Metric) -> Self {
        Self { name, metric, declared }
    }

    /// The mean over subjects of each subject's mean, so that whoever rates ten times counts once; those whom nobody
    /// knows are one subject together. A value that is not of the metric's type fails the sample only if no other is.
    fn of(&self, sample: &SampleInput) -> Score {
        let mut subjects: BTreeMap<Option<&str>, (f64, f64)> = BTreeMap::new();
        let mut refused = None;
        for Rating { value, subject, .. } in sample.ratings.iter().filter(|rating| rating.metric == self.metric) {
            match number(&self.declared, value) {
                Ok(number) => {
                    let (sum, n) = subjects.entry(subject.as_deref()).or_default();
                    *sum += number;
                    *n += 1.0;
                }
                Err(error) => refused = Some(error),
            }
        }
        if subjects.is_empty() {
            return Err(refused.unwrap_or(HookError::Unrated));
        }
        let people = subjects.len() as f64;
        Ok(Some(subjects.into_values().map(|(sum, n)| sum / n).sum::<f64>() / people))
    }
}

/// The number that a rating stands for; more is better, whichever way the metric is optimised.
///
/// # Errors
/// `Unusable` for a value of another type or an unknown choice, `NotFinite`, `OutOfRange`.
pub fn number(metric: &Metric, value: &Value) -> Result<f64, HookError> {
    let number = match (&metric.kind, value) {
        (MetricType::Bool, Value::Bool(true)) => metric.true_value,
        (MetricType::Bool, Value::Bool(false)) => metric.false_value,
        (MetricType::Number, Value::Number(number)) => *number,
        (MetricType::Choice, Value::Text(text)) => {
            *metric.choices.get(text).ok_or(HookError::Unusable("rating is none of the metric's choices"))?
        }
        _ => return Err(HookError::Unusable("rating is not of the metric's type")),
    };
    if !number.is_finite() {
        return Err(HookError::NotFinite);
    }
    if let Some([low, high]) = metric.range.filter(|[low, high]| !(*low..=*high).contains(&number)) {
        return Err(HookError::OutOfRange { value: number, low, high });
    }
    Ok(match metric.optimize {
        Optimize::Max => number,
        Optimize::Min => -number,
    })
}

#[async_trait]
impl RewardHook for Feedback {
    fn name(&self) -> &str {
        &self.name
    }

    async fn score(&self, groups: &[GroupInput]) -> Vec<Vec<Score>> {
        groups.iter().map(|group| group.samples.iter().map(|sample| self.of(sample)).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture_tests::sample;
    use super::*;

    fn metric(toml: &str) -> Metric {
        toml::from_str(toml).unwrap()
    }

    fn score(metric: Metric, ratings: &[(&str, Value, Option<&str>)]) -> Score {
        let mut rated = sample(1, "text");
        rated.ratings = ratings
            .iter()
            .map(|(metric, value, subject)| Rating {
                metric: (*metric).to_owned(),
                value: value.clone(),
                subject: subject.map(str::to_owned),
            })
            .collect();
        Feedback::new("hook".to_owned(), "thumbs".to_owned(), metric).of(&rated)
    }

    #[test]
    fn thumbs_have_the_declared_values() {
        let thumbs = || metric("type = \"bool\"\ntrue_value = 0.75\nfalse_value = -0.25");
        assert_eq!(score(thumbs(), &[("thumbs", Value::Bool(true), None)]), Ok(Some(0.75)));
        assert_eq!(score(thumbs(), &[("thumbs", Value::Bool(false), None)]), Ok(Some(-0.25)));
        assert_eq!(score(thumbs(), &[("other", Value::Bool(true), None)]), Err(HookError::Unrated));
        assert_eq!(score(thumbs(), &[]), Err(HookError::Unrated));
    }

    #[test]
    fn a_loud_subject_counts_once() {
        let (yes, no) = (Value::Bool(true), Value::Bool(false));
        let mut ratings = vec![("thumbs", no, Some("quiet"))];
        ratings.extend((0..9).map(|_| ("thumbs", yes.clone(), Some("loud"))));
        assert_eq!(score(metric("type = \"bool\""), &ratings), Ok(Some(0.5)));
        let anonymous: Vec<_> = ratings.into_iter().map(|(m, v, s)| (m, v, s.filter(|&s| s == "quiet"))).collect();
        assert_eq!(score(metric("type = \"bool\""), &anonymous), Ok(Some(0.5)));
    }

    #[test]
    fn choices_directions_and_ranges_hold() {
        let choice = || metric("type = \"choice\"\nchoices = { good = 1.0, bad = -1.0 }");
        assert_eq!(score(choice(), &[("thumbs", Value::Text("bad".to_owned()), None)]), Ok(Some(-1.0)));
        let unknown = score(choice(), &[("thumbs", Value::Text("so-so".to_owned()), None)]);
        assert_eq!(unknown.unwrap_err().reason(), "unusable");
        let stars = || metric("type = \"number\"\nrange = [1.0, 5.0]");
        assert_eq!(score(stars(), &[("thumbs", Value::Number(5.0), None)]), Ok(Some(5.0)));
        assert_eq!(score(stars(), &[("thumbs", Value::Number(6.0), None)]).unwrap_err().reason(), "out_of_range");
        assert_eq!(score(stars(), &[("thumbs", Value::Bool(true), None)]).unwrap_err().reason(), "unusable");
        let nan = score(metric("type = \"number\""), &[("thumbs", Value::Number(f64::NAN), None)]);
        assert_eq!(nan, Err(HookError::NotFinite));
        let seconds = metric("type = \"number\"\noptimize = \"min\"");
        assert_eq!(score(seconds, &[("thumbs", Value::Number(3.0), None)]), Ok(Some(-3.0)));
    }
}
