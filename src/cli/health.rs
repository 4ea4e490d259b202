//! `lacuna health`: asks a running server whether it is ready, so that a container needs no other client.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::term;

/// Flags of `lacuna health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Address of the server [default: http://127.0.0.1 with LACUNA_PORT, else 8080]
    #[arg(long, env = "LACUNA_URL")]
    pub url: Option<String>,
    /// Seconds to wait for the answer
    #[arg(long, default_value_t = 3, value_name = "SECONDS")]
    pub timeout: u64,
}

/// Runs the command: success when `/ready` answers 200.
///
/// # Errors
/// When the server cannot be reached in time.
pub fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let url = format!("{}/ready", server(args.url.as_deref()));
    let client = reqwest::Client::builder().timeout(Duration::from_secs(args.timeout)).build()?;
    let answer = super::runtime()?
        .block_on(async { client.get(&url).send().await })
        .with_context(|| format!("{url} does not answer"))?;
    let status = answer.status();
    term::line(format_args!("{} {url}", status.as_u16()));
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The address of the server that a command talks to, without a slash at its end.
pub(super) fn server(url: Option<&str>) -> String {
    let port = || std::env::var("LACUNA_PORT").ok().and_then(|text| text.parse::<u16>().ok()).unwrap_or(8080);
    url.map_or_else(|| format!("http://127.0.0.1:{}", port()), |url| url.trim_end_matches('/').to_owned())
}
