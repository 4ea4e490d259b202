//! The configuration: one struct per concern, each field at once a flag, a `LACUNA_*` variable and a key of the TOML
//! file. Flags win over variables, variables over the file, the file over the defaults.
//!
//! Lives here: the fields, their defaults and bounds, the layering. Does not: what the values are used for. Secrets
//! never belong here, so the whole of it can be printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};
use figment::Figment;
use figment::providers::{Data, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::rl::lanes::PREFERENCE;
use crate::rl::reward::config::{Hook, HookKind, Metric, MetricType, Optimize, Reward};
use crate::rl::trainer::TrainingConfig;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is outside its bounds.
    #[error("{field} = {value} is out of bounds: {limit}")]
    Bounds {
        /// `section.key`, as in the file; the flag has the key's name.
        field: &'static str,
        /// The value given.
        value: String,
        /// What would be accepted.
        limit: String,
    },
    /// The file named by `--config` is not there.
    #[error("--config {0}: no such file")]
    NoFile(PathBuf),
    /// The file, or a variable, does not parse or has an unknown key.
    #[error("configuration: {0}")]
    Parse(#[from] Box<figment::Error>),
    /// A value of learning is wrong.
    #[error("{0}")]
    Learning(String),
    /// A configuration could not be written as text.
    #[error("configuration cannot be written: {0}")]
    Render(String),
}

/// Where to listen and how to stop.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Server")]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address to listen on; 0.0.0.0 for all
    #[arg(long, env = "LACUNA_HOST", default_value_t = Server::default().host)]
    pub host: IpAddr,
    /// Port to listen on; 0 picks a free one
    #[arg(long, short, env = "LACUNA_PORT", value_parser = port, default_value_t = Server::default().port)]
    pub port: u16,
    /// Seconds that running requests get to finish on SIGTERM; a second signal stops at once
    #[arg(long, env = "LACUNA_SHUTDOWN_TIMEOUT", value_name = "SECONDS", default_value_t = Server::default().shutdown_timeout)]
    pub shutdown_timeout: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self { host: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 8080, shutdown_timeout: 30 }
    }
}

/// Which device computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A GPU when this build has one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU (needs a build with `--features cuda`).
    Cuda,
    /// The Apple GPU (needs a build with `--features metal`).
    Metal,
}

/// How the weights of matrix products are kept on a CPU, and with what precision those are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// Exact.
    #[default]
    F32,
    /// Weights and activations rounded to bf16: half the memory.
    Bf16,
    /// Weights and activations rounded to 8 bits, 256 to a scale: a quarter of the memory.
    Int8,
}

/// What is served and how much at a time.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Engine")]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Model: `starter`, which is built in, a folder with config.json and safetensors, or ORG/NAME@REVISION of the hub
    #[arg(long, env = "LACUNA_MODEL", default_value_t = Engine::default().model)]
    pub model: String,
    /// Image codec of a model that draws: a folder or ORG/NAME@REVISION \[default: showlab/magvitv2, for models of the
    /// hub]
    #[arg(long, env = "LACUNA_CODEC")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
    /// Download nothing: models of the hub come from its cache
    #[arg(long, env = "LACUNA_OFFLINE")]
    pub offline: bool,
    /// Device that computes
    #[arg(long, env = "LACUNA_DEVICE", value_enum, default_value_t = Engine::default().device)]
    pub device: DeviceKind,
    /// How the weights of products are kept on a CPU; less than f32 is faster (a GPU keeps the file's types)
    #[arg(long, env = "LACUNA_WEIGHTS", value_enum, default_value_t = Engine::default().weights)]
    pub weights: WeightFormat,
    /// CPU threads of the engine [default: one per processor, or half if those multiply as fast: measured at start]
    #[arg(long, env = "LACUNA_THREADS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Canvases that may wait for their first step; more are answered 503 (a request of n counts n)
    #[arg(long, env = "LACUNA_MAX_QUEUE", default_value_t = Engine::default().max_queue)]
    pub max_queue: usize,
    /// Token rows of one packed forward
    #[arg(long, env = "LACUNA_MAX_ROWS", default_value_t = Engine::default().max_rows)]
    pub max_rows: usize,
    /// Canvases that denoise at the same time
    #[arg(long, env = "LACUNA_MAX_RUNNING", default_value_t = Engine::default().max_running)]
    pub max_running: usize,
    /// Bytes of keys and values kept for canvases that ask for a cache, or whose model goes by blocks; 0 keeps none
    #[arg(long, env = "LACUNA_MAX_CACHE_BYTES", value_name = "BYTES", default_value_t = Engine::default().max_cache_bytes)]
    pub max_cache_bytes: usize,
}

impl Default for Engine {
    fn default() -> Self {
        let model = "starter".to_owned();
        Self {
            model,
            codec: None,
            offline: false,
            device: DeviceKind::Auto,
            weights: WeightFormat::F32,
            threads: None,
            max_queue: 256,
            max_rows: 4096,
            max_running: 64,
            max_cache_bytes: 1 << 30,
        }
    }
}

/// Bounds on one request.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Limits")]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of a request body; more are answered 413
    #[arg(long, env = "LACUNA_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = Limits::default().max_body_bytes)]
    pub max_body_bytes: usize,
    /// Seconds within which a request body must have arrived
    #[arg(long, env = "LACUNA_BODY_TIMEOUT_S", value_name = "SECONDS", default_value_t = Limits::default().body_timeout_s)]
    pub body_timeout_s: u64,
    /// Characters of a prompt
    #[arg(long, env = "LACUNA_MAX_PROMPT_CHARS", value_name = "N", default_value_t = Limits::default().max_prompt_chars)]
    pub max_prompt_chars: usize,
    /// Entries of prompt_token_ids
    #[arg(long, env = "LACUNA_MAX_PROMPT_TOKENS", value_name = "N", default_value_t = Limits::default().max_prompt_tokens)]
    pub max_prompt_tokens: usize,
    /// Completions of one request
    #[arg(long, env = "LACUNA_MAX_N", value_name = "N", default_value_t = Limits::default().max_n)]
    pub max_n: u32,
    /// Generated tokens of one completion
    #[arg(long, env = "LACUNA_MAX_TOKENS", value_name = "N", default_value_t = Limits::default().max_tokens)]
    pub max_tokens: usize,
    /// Denoising steps of one completion
    #[arg(long, env = "LACUNA_MAX_STEPS", value_name = "N", default_value_t = Limits::default().max_steps)]
    pub max_steps: usize,
    /// Cells of an image's token grid
    #[arg(long, env = "LACUNA_MAX_IMAGE_CELLS", value_name = "N", default_value_t = Limits::default().max_image_cells)]
    pub max_image_cells: usize,
    /// Longest deadline_ms that a request may ask for
    #[arg(long, env = "LACUNA_MAX_DEADLINE_MS", value_name = "MS", default_value_t = Limits::default().max_deadline_ms)]
    pub max_deadline_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 1 << 20,
            body_timeout_s: 30,
            max_prompt_chars: 8192,
            max_prompt_tokens: 4096,
            max_n: 16,
            max_tokens: 512,
            max_steps: 1024,
            max_image_cells: 4096,
            max_deadline_ms: 600_000,
        }
    }
}

/// Where the log is kept.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Store")]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Folder of the database; made when missing
    #[arg(long, env = "LACUNA_DATA_DIR", value_name = "DIR", default_value_os_t = Store::default().data_dir)]
    pub data_dir: PathBuf,
}

impl Default for Store {
    fn default() -> Self {
        Self { data_dir: PathBuf::from("data") }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Telemetry")]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// How log lines look
    #[arg(long, env = "LACUNA_LOG_FORMAT", value_enum, default_value_t = LogFormat::default())]
    pub log_format: LogFormat,
    /// What is logged, such as `debug` or `warn,lacuna=debug` [default: RUST_LOG, else info]
    #[arg(long, env = "LACUNA_LOG", value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// All of it. What people may say, what it is worth and how it is learned from has no flags: it is written down in the
/// file.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    #[command(flatten)]
    pub server: Server,
    /// What is served.
    #[command(flatten)]
    pub engine: Engine,
    /// Bounds on one request.
    #[command(flatten)]
    pub limits: Limits,
    /// The log.
    #[command(flatten)]
    pub store: Store,
    /// Log lines.
    #[command(flatten)]
    pub telemetry: Telemetry,
    /// What people may say of a completion.
    #[arg(skip)]
    pub metrics: BTreeMap<String, Metric>,
    /// What completions are worth.
    #[arg(skip)]
    pub reward: Reward,
    /// Hooks whose scores a candidate must not lower; no part of the reward.
    #[arg(skip)]
    pub guard: Vec<Hook>,
    /// How it learns.
    #[arg(skip)]
    pub training: TrainingConfig,
}

impl Default for Config {
    fn default() -> Self {
        let metric = |kind, range| Metric {
            kind,
            optimize: Optimize::Max,
            range,
            true_value: 1.0,
            false_value: 0.0,
            choices: BTreeMap::new(),
        };
        let thumbs = metric(MetricType::Bool, None);
        let preference = metric(MetricType::Number, Some([0.0, 1.0]));
        Self {
            server: Server::default(),
            engine: Engine::default(),
            limits: Limits::default(),
            store: Store::default(),
            telemetry: Telemetry::default(),
            metrics: BTreeMap::from([("thumbs".to_owned(), thumbs), (PREFERENCE.to_owned(), preference)]),
            // People alone never decide: the built-in model's own verifier has half the weight.
            reward: Reward {
                hook: vec![
                    Hook::named("thumbs", HookKind::Feedback, "metric"),
                    Hook::named(PREFERENCE, HookKind::Feedback, "metric"),
                    Hook::named("scene_soft", HookKind::Builtin, "builtin"),
                ],
                ..Reward::default()
            },
            guard: vec![Hook::named("scene_strict", HookKind::Builtin, "builtin")],
            training: TrainingConfig::default(),
        }
    }
}

/// Kubernetes sets `NAME_PORT=tcp://address:port` in every pod beside a service called `name`.
fn port(text: &str) -> Result<u16, String> {
    if text.contains("://") {
        return Err("that is a Kubernetes service link, not a port: a service named `lacuna` puts LACUNA_PORT into \
                    every pod beside it. Rename the service, set `enableServiceLinks: false` in the pod, or set \
                    LACUNA_PORT yourself"
            .to_owned());
    }
    text.parse().map_err(|_| "a port is a number from 0 to 65535".to_owned())
}

/// Which layer a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The TOML file.
    File,
    /// A `LACUNA_*` variable.
    Env,
    /// The command line.
    Flag,
}

/// A configuration with the layer each value comes from.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The effective values, within their bounds.
    pub config: Config,
    /// Origin of every `section.key` that somebody set.
    pub origins: BTreeMap<String, Origin>,
}

impl Resolved {
    /// Lays flags over variables over `file` over defaults. `sections` is what clap parsed into: some or all sections
    /// of [`Config`]; `matches` tells which of its values somebody set. `set` are `section.key=value`, flags
    /// for what has none.
    ///
    /// # Errors
    /// When the file is missing, does not parse, has an unknown key, or a value is out of bounds.
    pub fn new(
        sections: &impl Serialize,
        matches: &ArgMatches,
        file: Option<&Path>,
        set: &[String],
    ) -> Result<Self, ConfigError> {
        let mut origins = BTreeMap::new();
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(path) = file {
            if !path.is_file() {
                return Err(ConfigError::NoFile(path.to_owned()));
            }
            figment = layer(figment, Toml::file_exact(path), Origin::File, &mut origins)?;
        }
        let mut parsed = serde_json::to_value(sections).map_err(|e| ConfigError::Render(e.to_string()))?;
        for (section, keys) in parsed.as_object_mut().into_iter().flatten() {
            let Some(keys) = keys.as_object_mut() else { continue };
            keys.retain(|key, _| {
                let Some(origin) = set_by(matches, key) else { return false };
                origins.insert(format!("{section}.{key}"), origin);
                true
            });
        }
        figment = figment.merge(Serialized::defaults(parsed));
        for set in set {
            figment = layer(figment, Toml::string(&assignment(set)?), Origin::Flag, &mut origins)?;
        }
        let config: Config = figment.extract().map_err(Box::new)?;
        config.validate()?;
        Ok(Self { config, origins })
    }

    /// The effective values as a TOML file; those that differ from the defaults say where they come from.
    ///
    /// # Errors
    /// When a value has no TOML form.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let table = toml::Table::try_from(&self.config).map_err(|e| ConfigError::Render(e.to_string()))?;
        let mut out = String::new();
        for (section, keys) in &table {
            let _ = writeln!(out, "{}[{section}]", if out.is_empty() { "" } else { "\n" });
            for (key, value) in keys.as_table().into_iter().flatten() {
                let note = match self.origins.get(&format!("{section}.{key}")) {
                    None | Some(Origin::Default) => "",
                    Some(Origin::File) => "  # set in the file",
                    Some(Origin::Env) => "  # set by variable",
                    Some(Origin::Flag) => "  # set by flag",
                };
                let _ = writeln!(out, "{key} = {value}{note}");
            }
        }
        Ok(out)
    }
}

/// Lays a TOML text over `figment`, and notes what it sets.
fn layer(
    figment: Figment,
    toml: Data<Toml>,
    origin: Origin,
    origins: &mut BTreeMap<String, Origin>,
) -> Result<Figment, ConfigError> {
    for (section, keys) in Figment::from(&toml).extract::<Map<String, Value>>().map_err(Box::new)? {
        let keys = keys.as_object().into_iter().flat_map(Map::keys);
        origins.extend(keys.map(|key| (format!("{section}.{key}"), origin)));
    }
    Ok(figment.merge(toml))
}

/// `key=value` as TOML; what is no TOML value is text.
fn assignment(set: &str) -> Result<String, ConfigError> {
    let Some((key, value)) = set.split_once('=').filter(|(key, _)| key.contains('.')) else {
        return Err(bounds("--set", format!("{set:?}"), "section.key=value, as in the file"));
    };
    let plain = format!("{key} = {value}");
    let text = || format!("{key} = {}", toml::Value::String(value.to_owned()));
    Ok(if toml::from_str::<toml::Table>(&plain).is_ok() { plain } else { text() })
}

/// The layer that set the argument `key`, when it is a flag or a variable.
fn set_by(matches: &ArgMatches, key: &str) -> Option<Origin> {
    matches.ids().find(|id| id.as_str() == key)?;
    match matches.value_source(key)? {
        ValueSource::CommandLine => Some(Origin::Flag),
        ValueSource::EnvVariable => Some(Origin::Env),
        _ => None,
    }
}

impl Config {
    /// Checks every value against its bounds.
    ///
    /// # Errors
    /// `Bounds`, naming field, value and limit, for the first value outside.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (engine, limits) = (&self.engine, &self.limits);
        within("server.shutdown_timeout", self.server.shutdown_timeout, 0, 3600)?;
        within("engine.threads", engine.threads.unwrap_or(1) as u64, 1, 1024)?;
        within("engine.max_queue", engine.max_queue as u64, 1, 1 << 16)?;
        within("engine.max_rows", engine.max_rows as u64, 64, 1 << 20)?;
        within("engine.max_running", engine.max_running as u64, 1, 4096)?;
        within("engine.max_cache_bytes", engine.max_cache_bytes as u64, 0, 1 << 44)?;
        within("limits.max_body_bytes", limits.max_body_bytes as u64, 1 << 10, 1 << 28)?;
        within("limits.body_timeout_s", limits.body_timeout_s, 1, 3600)?;
        within("limits.max_prompt_tokens", limits.max_prompt_tokens as u64, 1, 1 << 20)?;
        within("limits.max_image_cells", limits.max_image_cells as u64, 1, 1 << 16)?;
        within("limits.max_prompt_chars", limits.max_prompt_chars as u64, 1, 1 << 20)?;
        within("limits.max_n", limits.max_n.into(), 1, MOST_COMPLETIONS)?;
        within("limits.max_steps", limits.max_steps as u64, 1, 1 << 16)?;
        within("limits.max_tokens", limits.max_tokens as u64, 1, 1 << 20)?;
        within("limits.max_deadline_ms", limits.max_deadline_ms, 1, 86_400_000)?;
        if let Err(error) = self.training.validate() {
            return Err(ConfigError::Learning(error.to_string()));
        }
        if engine.model.is_empty() {
            return Err(bounds("engine.model", "\"\"", "name a model: `starter`, a folder, or ORG/NAME"));
        }
        if limits.max_n as usize > engine.max_queue {
            let limit = format!("at most engine.max_queue = {}, or such a request is never admitted", engine.max_queue);
            return Err(bounds("limits.max_n", limits.max_n, limit));
        }
        Ok(())
    }
}

/// Largest `max_n`: the log takes the completions of a request together.
pub const MOST_COMPLETIONS: u64 = 64;

fn within(field: &'static str, value: u64, low: u64, high: u64) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) { Ok(()) } else { Err(bounds(field, value, format!("from {low} to {high}"))) }
}

fn bounds(field: &'static str, value: impl ToString, limit: impl Into<String>) -> ConfigError {
    ConfigError::Bounds { field, value: value.to_string(), limit: limit.into() }
}
