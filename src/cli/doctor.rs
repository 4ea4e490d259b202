//! `lacuna doctor`: checks this machine, whether the model fits it, the model and the store, one line each.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use clap::{ArgMatches, Args};

use super::{ConfigFile, WithLog, host, term};
use crate::config::Config;

mod fit;

/// Flags of `lacuna doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Configuration file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// What is checked.
    #[command(flatten)]
    pub sections: WithLog,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Debug)]
struct Check {
    verdict: Verdict,
    what: &'static str,
    found: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Pass => "PASS",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{verdict}  {:<8} {}", self.what, self.found)
    }
}

/// Runs the command; fails when a check fails.
///
/// # Errors
/// When the configuration is wrong.
pub fn run(args: &DoctorArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let config = args.file.resolve(&args.sections, matches)?.config;
    let mut checks = vec![version(), system(), cpu(), device(&config)];
    checks.extend(memory(&config));
    // What does not fit is not tried.
    if checks.last().is_none_or(|check| check.what != "memory" || check.verdict != Verdict::Fail) {
        checks.push(model(&config));
    }
    checks.push(store(&config));
    for check in &checks {
        term::line(check);
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn check(what: &'static str, outcome: Result<(Verdict, String), String>) -> Check {
    let (verdict, found) = outcome.unwrap_or_else(|problem| (Verdict::Fail, problem));
    Check { verdict, what, found }
}

fn version() -> Check {
    check("lacuna", Ok((Verdict::Pass, env!("CARGO_PKG_VERSION").to_owned())))
}

fn system() -> Check {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or(std::env::consts::OS);
    check("system", Ok((Verdict::Pass, format!("{} {}", name.trim_matches('"'), std::env::consts::ARCH))))
}

fn cpu() -> Check {
    let features = host::cpu_features();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{threads} threads; {}", features.join(" "));
    if cfg!(target_arch = "x86_64") && !features.contains(&"fma") {
        return check(
            "cpu",
            Ok((Verdict::Warn, format!("{found}: without avx2 and fma everything takes several times as long"))),
        );
    }
    check("cpu", Ok((Verdict::Pass, found)))
}

fn device(config: &Config) -> Check {
    let found = host::device(config.engine.device).map(|device| (Verdict::Pass, host::describe(&device)));
    check("device", found.map_err(|error| format!("{error:#}")))
}

/// Of a checkpoint, by its files alone; the built-in model fits everywhere.
fn memory(config: &Config) -> Option<Check> {
    let limits = &config.engine;
    let placement = host::placement(limits).ok()?;
    // What cannot be had is told of by the check of the model.
    let folder = host::checkpoint(limits).ok()??;
    Some(check("memory", fit::check(&folder, &placement, limits)))
}

fn model(config: &Config) -> Check {
    let found = host::start(&config.engine).map(|host| (Verdict::Pass, host.describe_model()));
    check("model", found.map_err(|error| format!("{error:#}")))
}

fn store(config: &Config) -> Check {
    check("store", writable(&config.store.data_dir))
}

/// Whether the data folder, or the one it would be made in, takes files.
fn writable(folder: &Path) -> Result<(Verdict, String), String> {
    let Some(there) =
        folder.ancestors().map(|f| if f.as_os_str().is_empty() { Path::new(".") } else { f }).find(|f| f.is_dir())
    else {
        return Err(format!("{} has no parent folder", folder.display()));
    };
    let probe = there.join(format!(".lacuna-probe-{}", std::process::id()));
    std::fs::write(&probe, b"probe").map_err(|error| format!("{} takes no files: {error}", there.display()))?;
    let _ = std::fs::remove_file(&probe);
    let found = if there == folder { "writable" } else { "will be made" };
    Ok((Verdict::Pass, format!("{} ({found})", folder.display())))
}
