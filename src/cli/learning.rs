//! The learner of a command, set up from the configuration: adapters on disk, reward hooks, the background trainer.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use crate::adapters::{self, Base};
use crate::config::Config;
use crate::rl::publish::Publisher;
use crate::rl::reward::config::Reward;
use crate::rl::reward::{self, Rewards};
use crate::rl::trainer::{Parts, Trainer};
use crate::starter;
use crate::store::Store;

/// Starts learning; `None` when the model takes no adapters.
///
/// # Errors
/// When a hook is configured wrongly, or the adapters on disk cannot be read.
pub async fn start(
    config: &Config,
    host: &Host,
    store: Arc<dyn Store>,
    stop: CancellationToken,
) -> anyhow::Result<Option<(Trainer, JoinHandle<()>)>> {
    let Some(parts) = parts(config, host, store).await? else { return Ok(None) };
    Ok(Some(Trainer::start(parts, stop)?))
}

/// What a trainer works with; `None` when the model takes no adapters.
///
/// # Errors
/// As [`start`].
pub async fn parts(config: &Config, host: &Host, store: Arc<dyn Store>) -> anyhow::Result<Option<Parts>> {
    let Some(base) = base(host) else { return Ok(None) };
    let folder = config.store.data_dir.join("adapters");
    let files = adapters::Registry::open(&folder, base, adapters::Limits::default()).context("adapters")?;
    let publisher = Publisher::open(host.engine.clone(), Arc::clone(&store), Arc::new(files)).await?;
    let guards = Reward { hook: config.guard.clone(), allow_user_only_reward: true, ..Reward::default() };
    Ok(Some(Parts {
        engine: host.engine.clone(),
        store,
        publisher: Arc::new(publisher),
        rewards: rewards(config, &config.reward)?,
        guards: rewards(config, &guards)?,
        config: config.training.clone(),
        data_dir: config.store.data_dir.clone(),
        holder: format!("{}-{}", std::process::id(), uuid::Uuid::now_v7()),
    }))
}

/// What adapters must fit; `None` when the model takes none.
#[must_use]
pub fn base(host: &Host) -> Option<Base> {
    let spec = host.engine.spec();
    let config = host.model.backbone.adaptable()?.clone();
    Some(Base { model: spec.name.clone(), sha256: spec.sha256.clone(), config, device: host.device_handle.clone() })
}

fn rewards(config: &Config, reward: &Reward) -> anyhow::Result<Rewards> {
    // Secrets are variables that the file only names.
    Ok(reward::build(&config.metrics, reward, &starter::reward::rules(), &|name| std::env::var(name).ok())?)
}
