//! From a configuration to hooks: what belongs to each kind, with its bounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use regex::RegexBuilder;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::builtin::Builtin;
use super::builtin::answer::{Extract, Wanted};
use super::builtin::schema::Schema;
use super::combine::{Gate, Part, Policy};
use super::config::{ConfigError, Hook, HookKind, Metric, Reward, refuse};
use super::connect::Target;
use super::feedback::Feedback;
use super::http::{self, Http, Protocol};
use super::{RewardHook, Rewards, Rule, RuleHook, Rules, command};

/// Longest `timeout`.
const MAX_TIMEOUT: Duration = Duration::from_secs(180);
/// Largest compiled pattern, bytes.
const MAX_PATTERN: usize = 1 << 20;

/// Builds every hook. `env` reads a variable (secrets stay out of the configuration); `rules` are the served model's
/// own verifiers, which a hook of kind `builtin` names like any other.
///
/// # Errors
/// The table and field that is wrong, and what would be right.
pub fn build(
    metrics: &BTreeMap<String, Metric>,
    reward: &Reward,
    rules: &Rules,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Rewards, ConfigError> {
    reward.validate(metrics)?;
    let mut hooks = Vec::with_capacity(reward.hook.len());
    for hook in &reward.hook {
        let built = match hook.kind {
            HookKind::Feedback => feedback(hook, metrics)?,
            HookKind::Builtin => builtin(hook, rules)?,
            HookKind::Http => over_http(hook, env)?,
            HookKind::Command => child(hook, env)?,
        };
        hooks.push((built, hook.range));
    }
    let policy = Policy {
        aggregate: reward.aggregate,
        user_weight_cap: reward.user_weight_cap,
        allow_user_only: reward.allow_user_only_reward,
        min_scored_fraction: reward.min_scored_fraction,
        parts: reward.hook.iter().map(part).collect(),
    };
    Ok(Rewards::new(hooks, policy))
}

fn part(hook: &Hook) -> Part {
    Part {
        name: hook.name.clone(),
        weight: hook.weight,
        gate: hook.gate.then_some(Gate { least: hook.gate_min, fail_reward: hook.gate_fail_reward }),
        on_missing: hook.on_missing,
        required: hook.required,
        user: hook.kind == HookKind::Feedback,
    }
}

fn options<T: DeserializeOwned>(hook: &Hook) -> Result<T, ConfigError> {
    let options = hook.options.clone().into_iter().collect();
    serde_json::from_value(serde_json::Value::Object(options))
        .or_else(|error| refuse(format!("reward.hook {}", hook.name), error.to_string()))
}

fn at(hook: &Hook, field: &str) -> String {
    format!("reward.hook {}: {field}", hook.name)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FeedbackOptions {
    metric: String,
}

fn feedback(hook: &Hook, metrics: &BTreeMap<String, Metric>) -> Result<Arc<dyn RewardHook>, ConfigError> {
    let FeedbackOptions { metric } = options(hook)?;
    let Some(declared) = metrics.get(&metric) else {
        return refuse(at(hook, "metric"), format!("there is no table [metrics.{metric}]"));
    };
    Ok(Arc::new(Feedback::new(hook.name.clone(), metric, declared.clone())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BuiltinOptions {
    builtin: String,
    answer: Option<String>,
    answer_key: Option<String>,
    extract: Option<Extract>,
    tolerance: Option<f64>,
    pattern: Option<String>,
    schema: Option<serde_json::Value>,
    min: Option<usize>,
    max: Option<usize>,
    n: Option<usize>,
}

const BUILTINS: &str = "answer, number, regex, json_valid, json_schema, length, repetition";

fn builtin(hook: &Hook, rules: &Rules) -> Result<Arc<dyn RewardHook>, ConfigError> {
    let o: BuiltinOptions = options(hook)?;
    let present = [
        ("answer", o.answer.is_some()),
        ("answer_key", o.answer_key.is_some()),
        ("extract", o.extract.is_some()),
        ("tolerance", o.tolerance.is_some()),
        ("pattern", o.pattern.is_some()),
        ("schema", o.schema.is_some()),
        ("min", o.min.is_some()),
        ("max", o.max.is_some()),
        ("n", o.n.is_some()),
    ];
    let fields: &[&str] = match o.builtin.as_str() {
        "answer" => &["answer", "answer_key", "extract"],
        "number" => &["answer", "answer_key", "extract", "tolerance"],
        "regex" => &["pattern"],
        "json_schema" => &["schema"],
        "length" => &["min", "max"],
        "repetition" => &["n"],
        _ => &[],
    };
    if let Some((field, _)) = present.iter().find(|(field, set)| *set && !fields.contains(field)) {
        return refuse(at(hook, field), format!("means nothing to the builtin {:?}", o.builtin));
    }
    let rule: Arc<dyn Rule> = match rules.get(o.builtin.as_str()) {
        Some(rule) => Arc::clone(rule),
        None => Arc::new(general(hook, o, rules)?),
    };
    Ok(Arc::new(RuleHook::new(hook.name.clone(), rule)))
}

fn general(hook: &Hook, o: BuiltinOptions, rules: &Rules) -> Result<Builtin, ConfigError> {
    if o.answer.is_some() && o.answer_key.is_some() {
        return refuse(at(hook, "answer_key"), "answer is given too; one of them is enough");
    }
    let wanted =
        |default| Wanted { fixed: o.answer.clone(), key: o.answer_key.clone(), extract: o.extract.unwrap_or(default) };
    Ok(match o.builtin.as_str() {
        "answer" if o.extract == Some(Extract::Last) => {
            return refuse(at(hook, "extract"), "\"last\" is for the builtin \"number\"");
        }
        "answer" => Builtin::Answer(wanted(Extract::Whole)),
        "number" => {
            let tolerance = o.tolerance.unwrap_or(0.0);
            if !tolerance.is_finite() || tolerance < 0.0 {
                return refuse(at(hook, "tolerance"), format!("{tolerance} is not a finite number of at least 0"));
            }
            Builtin::Number { wanted: wanted(Extract::Last), tolerance }
        }
        "regex" => {
            let pattern = o.pattern.as_deref().unwrap_or_default();
            if pattern.is_empty() {
                return refuse(at(hook, "pattern"), "is required for the builtin \"regex\"");
            }
            let compiled = RegexBuilder::new(pattern).size_limit(MAX_PATTERN).build();
            Builtin::Regex(compiled.or_else(|error| refuse(at(hook, "pattern"), error.to_string()))?)
        }
        "json_valid" => Builtin::Json(None),
        "json_schema" => {
            let Some(schema) = &o.schema else {
                return refuse(at(hook, "schema"), "is required for the builtin \"json_schema\"");
            };
            Builtin::Json(Some(Schema::new(schema).or_else(|error| refuse(at(hook, "schema"), error))?))
        }
        "length" => match (o.min.unwrap_or(0), o.max.unwrap_or(usize::MAX)) {
            (min, max) if min <= max => Builtin::Length { min, max },
            (min, max) => return refuse(at(hook, "min"), format!("{min} is more than max = {max}")),
        },
        "repetition" => match o.n.unwrap_or(3) {
            n @ 1..=16 => Builtin::Repetition { n },
            n => return refuse(at(hook, "n"), format!("{n} is not from 1 to 16")),
        },
        other => {
            let own: Vec<&str> = rules.keys().copied().collect();
            return refuse(at(hook, "builtin"), format!("{other:?} is none of {BUILTINS}; {}", own.join(", ")));
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpOptions {
    url: String,
    protocol: Option<String>,
    timeout: Option<String>,
    retries: Option<u32>,
    backoff: Option<String>,
    concurrency: Option<usize>,
    max_batch: Option<usize>,
    secret_env: Option<String>,
    #[serde(default)]
    allow_private: Vec<String>,
}

fn over_http(hook: &Hook, env: &dyn Fn(&str) -> Option<String>) -> Result<Arc<dyn RewardHook>, ConfigError> {
    let o: HttpOptions = options(hook)?;
    let target = Target::parse(&o.url).or_else(|problem| refuse(at(hook, "url"), problem))?;
    let authority = target.authority();
    if !target.tls && !o.allow_private.iter().any(|entry| entry.eq_ignore_ascii_case(&authority)) {
        return refuse(at(hook, "url"), format!("must be https, unless allow_private lists \"{authority}\""));
    }
    let protocol = match o.protocol.as_deref() {
        None | Some("v1") => Protocol::V1,
        Some("openrlhf") => Protocol::OpenRlhf,
        Some(other) => return refuse(at(hook, "protocol"), format!("{other:?} is none of \"v1\", \"openrlhf\"")),
    };
    let secret = match &o.secret_env {
        None => None,
        Some(name) => match env(name).filter(|secret| !secret.is_empty()) {
            Some(secret) => Some(secret.into_bytes()),
            None => return refuse(at(hook, "secret_env"), format!("the variable {name} is not set")),
        },
    };
    Ok(Arc::new(Http::new(http::Settings {
        name: hook.name.clone(),
        target,
        protocol,
        range: hook.range,
        timeout: timeout(hook, o.timeout.as_deref(), Duration::from_secs(10))?,
        tries: count(hook, "retries", o.retries.unwrap_or(3) as usize, 1, 10)? as u32,
        backoff: duration(hook, "backoff", o.backoff.as_deref(), Duration::from_millis(250))?,
        concurrency: count(hook, "concurrency", o.concurrency.unwrap_or(8), 1, 256)?,
        max_batch: count(hook, "max_batch", o.max_batch.unwrap_or(64), 1, 4096)?,
        secret,
        allow_private: o.allow_private,
        breaker_pause: Duration::from_secs(30),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandOptions {
    command: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<String>,
    restarts: Option<u32>,
    max_batch: Option<usize>,
}

fn child(hook: &Hook, env: &dyn Fn(&str) -> Option<String>) -> Result<Arc<dyn RewardHook>, ConfigError> {
    let o: CommandOptions = options(hook)?;
    if o.command.first().is_none_or(String::is_empty) {
        return refuse(at(hook, "command"), "must be a list: the program, then its arguments (there is no shell)");
    }
    Ok(Arc::new(command::Command::new(command::Settings {
        name: hook.name.clone(),
        command: o.command,
        env: o.env.into_iter().filter_map(|name| env(&name).map(|value| (name, value))).collect(),
        range: hook.range,
        timeout: timeout(hook, o.timeout.as_deref(), Duration::from_secs(30))?,
        restarts: count(hook, "restarts", o.restarts.unwrap_or(3) as usize, 0, 100)? as u32,
        max_batch: count(hook, "max_batch", o.max_batch.unwrap_or(64), 1, 4096)?,
    })))
}

fn count(hook: &Hook, field: &str, n: usize, low: usize, high: usize) -> Result<usize, ConfigError> {
    if (low..=high).contains(&n) { Ok(n) } else { refuse(at(hook, field), format!("{n} is not from {low} to {high}")) }
}

fn timeout(hook: &Hook, text: Option<&str>, default: Duration) -> Result<Duration, ConfigError> {
    let timeout = duration(hook, "timeout", text, default)?;
    if timeout.is_zero() || timeout > MAX_TIMEOUT {
        return refuse(at(hook, "timeout"), format!("{timeout:?} is not more than 0 and at most {MAX_TIMEOUT:?}"));
    }
    Ok(timeout)
}

/// Reads `250ms`, `10s` or `3m`.
fn duration(hook: &Hook, field: &str, text: Option<&str>, default: Duration) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[split..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => 0,
    };
    match text[..split].parse::<u64>() {
        Ok(n) if unit > 0 => Ok(Duration::from_millis(n.saturating_mul(unit))),
        _ => refuse(at(hook, field), format!("{text:?} is not like \"250ms\", \"10s\" or \"3m\"")),
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
