//! `lacuna adapters`: the versions of a running server, and the decisions about them, over HTTP.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use super::health::server;
use super::term;

/// Flags of `lacuna adapters`.
#[derive(Debug, Clone, Args)]
pub struct AdaptersArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
    /// Address of the server [default: http://127.0.0.1 with LACUNA_PORT, else 8080]
    #[arg(long, env = "LACUNA_URL", global = true)]
    pub url: Option<String>,
    /// Seconds to wait for the answer
    #[arg(long, default_value_t = 30, value_name = "SECONDS", global = true)]
    pub timeout: u64,
    /// Print what the server answers, as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// What can be done with versions.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Every version, newest first, and which are served
    List,
    /// One version: how it came about, what the gate measured, what people say of it
    Show {
        /// The version, such as main@3
        version: String,
    },
    /// Put a version into service
    Promote {
        /// The version, such as main@3
        version: String,
        /// Share of the people that get it first, as a canary; everybody when absent
        #[arg(long)]
        share: Option<f64>,
        /// Why, for the audit trail
        #[arg(long)]
        reason: Option<String>,
    },
    /// Take back the canary, or else the active version
    Rollback {
        /// What is served instead [default: the last good version before]
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
        /// Why, for the audit trail
        #[arg(long)]
        reason: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// When the server cannot be reached, or refuses; its reason is the message.
pub fn run(args: &AdaptersArgs) -> anyhow::Result<ExitCode> {
    let client = Client::builder().timeout(Duration::from_secs(args.timeout)).build()?;
    let base = format!("{}/adapters", server(args.url.as_deref()));
    let request = match &args.action {
        Action::List => client.get(&base),
        Action::Show { version } => client.get(format!("{base}/{}", segment(version)?)),
        Action::Promote { version, share, reason } => client
            .post(format!("{base}/{}/approve", segment(version)?))
            .json(&given([("share", json!(share)), ("reason", json!(reason))])),
        Action::Rollback { to, reason } => {
            client.post(format!("{base}/rollback")).json(&given([("to", json!(to)), ("reason", json!(reason))]))
        }
    };
    let answer = super::runtime()?.block_on(ask(request))?;
    if args.json {
        term::line(serde_json::to_string_pretty(&answer)?);
        return Ok(ExitCode::SUCCESS);
    }
    match &args.action {
        Action::List => term::line(list(&answer)),
        Action::Show { .. } => term::line(show(&answer)),
        Action::Promote { .. } | Action::Rollback { .. } => term::line(routes(&answer)),
    }
    Ok(ExitCode::SUCCESS)
}

/// A version as a part of a path; what cannot be one is refused here, so that it never becomes another path.
fn segment(version: &str) -> anyhow::Result<&str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if version.is_empty() || version.starts_with('.') || !version.chars().all(fits) {
        bail!("{version:?} is no version; they look like main@3");
    }
    Ok(version)
}

/// The fields that have a value.
fn given<const N: usize>(fields: [(&str, Value); N]) -> Value {
    fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
}

async fn ask(request: RequestBuilder) -> anyhow::Result<Value> {
    let answer = request.send().await.context("the server does not answer; is --url right?")?;
    let status = answer.status();
    let text = answer.text().await?;
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
    if status.is_success() {
        return Ok(body);
    }
    let said = ["detail", "title"].iter().find_map(|field| body[*field].as_str());
    bail!("{}: {}", status.as_u16(), said.unwrap_or("the server gives no reason"))
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn routes(routes: &Value) -> String {
    let canary = &routes["canary"];
    let trial = match canary["share"].as_f64() {
        Some(share) => format!("; on trial: {} for {:.0} %", text(&canary["version"]), 100.0 * share),
        None => String::new(),
    };
    format!("served: {}{trial}", text(&routes["active"]))
}

fn list(answer: &Value) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["version", "status", "parent", "gate", "rank", "created"]);
    for adapter in answer["adapters"].as_array().into_iter().flatten() {
        let gate = match adapter["gate_passed"].as_bool() {
            Some(true) => "passed".to_owned(),
            Some(false) => "failed".to_owned(),
            None => text(&Value::Null),
        };
        let of = |field: &str| text(&adapter[field]);
        table.add_row([of("version"), of("status"), of("parent"), gate, of("rank"), of("created_at")]);
    }
    format!("{table}\n{}", routes(&answer["routes"]))
}

fn show(answer: &Value) -> String {
    let mut lines = Vec::new();
    for field in ["version", "status", "parent", "created_at", "rank", "bytes", "run"] {
        lines.push(format!("{field:<12}{}", text(&answer[field])));
    }
    lines.push(format!("{:<12}{}", "algorithm", text(&answer["manifest"]["algorithm"])));
    for check in answer["gate"]["checks"].as_array().into_iter().flatten() {
        let verdict = if check["passed"] == true { "passed" } else { "failed" };
        let number = |field: &str| check[field].as_f64().unwrap_or(f64::NAN);
        let name = text(&check["name"]);
        lines.push(format!("{:<12}{name} {:.4}, limit {:.4}: {verdict}", "gate", number("value"), number("limit")));
    }
    let said = &answer["outcomes"];
    lines.push(format!(
        "{:<12}{} of {} completions rated by {} people, mean {}",
        text(&said["metric"]),
        said["ratings"],
        said["completions"],
        said["subjects"],
        said["mean"].as_f64().map_or_else(|| text(&Value::Null), |mean| format!("{mean:.3}"))
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_one_segment_of_a_path() {
        assert_eq!(segment("main@3").unwrap(), "main@3");
        for wrong in ["", "..", "../audit", "main@3/approve", "main@3?x", "a b", "main%2f"] {
            assert!(segment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_was_given_is_sent() {
        assert_eq!(given([("share", json!(None::<f64>)), ("reason", json!(Some("why")))]), json!({"reason": "why"}));
        assert_eq!(given([("to", Value::Null)]), json!({}));
    }

    #[test]
    fn answers_become_lines() {
        let answer = json!({
            "routes": {"generation": 3, "active": "main@1", "canary": {"version": "main@2", "share": 0.25}},
            "adapters": [{"version": "main@2", "status": "canary", "parent": "main@1", "gate_passed": true, "rank": 16,
                "created_at": "2026-01-31T12:00:00Z"}],
        });
        let shown = list(&answer);
        assert!(shown.contains("main@2") && shown.contains("passed"), "{shown}");
        assert!(shown.ends_with("served: main@1; on trial: main@2 for 25 %"), "{shown}");
        let record = json!({"version": "main@2", "manifest": {"algorithm": "kto"},
            "gate": {"checks": [{"name": "kl", "value": 0.7, "limit": 0.5, "passed": false}]},
            "outcomes": {"metric": "thumbs", "completions": 9, "ratings": 4, "subjects": 3, "mean": 0.75}});
        let shown = show(&record);
        assert!(shown.contains("kl 0.7000, limit 0.5000: failed") && shown.contains("kto"), "{shown}");
        assert!(shown.ends_with("4 of 9 completions rated by 3 people, mean 0.750"), "{shown}");
    }
}
