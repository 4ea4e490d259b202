//! `lacuna serve`: model, log, engine and HTTP, up until a signal says otherwise.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{ArgMatches, Args};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::{ConfigFile, host, learning, term};
use crate::api::limits::ApiLimits;
use crate::api::{self, AppState, Shutdown};
use crate::config::{self, Config, Limits};
use crate::store::{self, SqliteStore, Store as _, StoreCounts};
use crate::telemetry;

const _: () =
    assert!(config::MOST_COMPLETIONS as usize <= store::MAX_ROWS, "the log takes a request's completions at once");

/// Flags of `lacuna serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Print the effective configuration as TOML, with where each value comes from, and stop
    #[arg(long)]
    pub print_config: bool,
    /// Configuration file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// The configuration.
    #[command(flatten)]
    pub config: Config,
}

/// Runs the command.
///
/// # Errors
/// When the configuration is wrong, or a part of the server cannot be started.
pub fn run(args: &ServeArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let resolved = args.file.resolve(&args.config, matches)?;
    if args.print_config {
        term::part(resolved.to_toml()?);
        return Ok(ExitCode::SUCCESS);
    }
    telemetry::init_logs(&resolved.config.telemetry)?;
    super::runtime()?.block_on(serve(&resolved.config))
}

async fn serve(config: &Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut server = tokio::select! {
        server = Server::start(config) => server?,
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    term::part(server.tree(config).await?);
    if !config.server.host.is_loopback() {
        tracing::warn!(host = %config.server.host, "everybody who reaches this address can use the server: it asks for no key");
    }
    tokio::select! {
        () = signals.next() => {}
        ended = &mut server.task => {
            ended.map_err(io::Error::other).flatten().context("the HTTP server ended")?;
            anyhow::bail!("the HTTP server ended by itself");
        }
    }
    tokio::select! {
        stopped = server.stop() => stopped.map(|()| ExitCode::SUCCESS),
        () = signals.next() => {
            tracing::warn!("second signal: stopping at once");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A running server in this process.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its engine.
    pub host: Host,
    store: Arc<SqliteStore>,
    stop: CancellationToken,
    task: JoinHandle<io::Result<()>>,
    learner: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts everything; `/ready` answers 200 when this returns.
    ///
    /// # Errors
    /// When the address is taken, the model or the log cannot be opened, or the engine is not well.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let begun = Instant::now();
        // The address first: a port that is taken should not cost a model's loading time.
        let wanted = SocketAddr::new(config.server.host, config.server.port);
        let listener = TcpListener::bind(wanted).await.with_context(|| format!("cannot listen on {wanted}"))?;
        let address = listener.local_addr()?;
        let metrics = telemetry::init_metrics()?;
        let store = Arc::new(SqliteStore::open(&config.store.data_dir).await?);
        let engine_config = config.engine.clone();
        let host = tokio::task::spawn_blocking(move || host::start(&engine_config)).await??;
        let mut state = AppState::new(host.engine.clone(), store.clone(), metrics, store.subject_key().clone());
        state.limits = api_limits(&config.limits);
        state.device = host.device.clone();
        state.weights = host.weights;
        state.shutdown = Shutdown { drain: Duration::from_secs(config.server.shutdown_timeout), ..Shutdown::default() };
        let stop = CancellationToken::new();
        let learner = learning::start(config, &host, store.clone(), stop.child_token()).await?;
        let (trainer, learner) = learner.unzip();
        state.learning = trainer.as_ref().filter(|_| config.training.enabled).map(|_| config.training.promotion);
        state.trainer = trainer;
        store.ping().await.context("the log does not answer")?;
        ensure!(host.engine.status().healthy, "the engine is not well");
        let task = tokio::spawn(api::serve(listener, Arc::new(state), stop.clone().cancelled_owned()));
        tracing::info!(%address, model = host.engine.spec().name, startup_ms = begun.elapsed().as_millis(), "ready");
        Ok(Self { address, host, store, stop, task, learner })
    }

    /// Its address as a URL that this machine can use.
    #[must_use]
    pub fn url(&self) -> String {
        let ip = match self.address.ip() {
            ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        format!("http://{}", SocketAddr::new(ip, self.address.port()))
    }

    /// Drains, and closes the log.
    ///
    /// # Errors
    /// When the HTTP server failed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        let ended = self.task.await.map_err(io::Error::other).flatten();
        if let Some(learner) = self.learner {
            learner.await.context("the learner ended badly")?;
        }
        self.store.close().await;
        tracing::info!("stopped");
        ended.context("the HTTP server failed")
    }

    /// What is on, for people; the first line says where.
    async fn tree(&self, config: &Config) -> anyhow::Result<String> {
        let counts = self.store.counts().await?;
        let url = self.url();
        let lines = [
            ("playground", format!("{url}/")),
            ("docs", format!("{url}/docs")),
            ("model", self.host.describe_model()),
            ("device", format!("{}, {} threads, {} weights", self.host.device, self.host.threads, self.host.weights)),
            ("store", describe_store(&config.store.data_dir, counts)),
            ("limits", describe_limits(config)),
        ];
        let mut tree = format!("lacuna {} listening on http://{}\n", env!("CARGO_PKG_VERSION"), self.address);
        for (i, (name, value)) in lines.iter().enumerate() {
            let branch = if i + 1 == lines.len() { '└' } else { '├' };
            let _ = writeln!(tree, "{branch} {name:<10} {value}");
        }
        Ok(tree)
    }
}

fn describe_store(folder: &Path, counts: StoreCounts) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    format!("{}: {} completions, {} ratings", folder.display(), counts.completions, counts.feedback)
}

fn describe_limits(config: &Config) -> String {
    let (engine, limits) = (&config.engine, &config.limits);
    format!(
        "{} canvases run, {} wait, {} rows a tick; a request: n {}, {} tokens, {} steps, {} KiB",
        engine.max_running,
        engine.max_queue,
        engine.max_rows,
        limits.max_n,
        limits.max_tokens,
        limits.max_steps,
        limits.max_body_bytes >> 10
    )
}

fn api_limits(limits: &Limits) -> ApiLimits {
    let Limits {
        max_body_bytes,
        body_timeout_s,
        max_prompt_chars,
        max_prompt_tokens,
        max_n,
        max_tokens,
        max_steps,
        max_image_cells,
        max_deadline_ms,
    } = *limits;
    ApiLimits {
        max_body_bytes,
        body_timeout_s,
        max_prompt_chars,
        max_prompt_tokens,
        max_n,
        max_tokens,
        max_steps,
        max_image_cells,
        max_deadline_ms,
    }
}

/// SIGTERM and ctrl-c.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Returns at the next one.
    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_configuration_are_those_of_the_api() {
        assert_eq!(api_limits(&Limits::default()), ApiLimits::default());
    }
}
