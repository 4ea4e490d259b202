//! What the routes share: the handles of the layers below, bounds, defaults, and how far the shutdown is.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::defaults::Defaults;
use super::error::ApiError;
use super::limits::ApiLimits;
use super::reserve::Reserve;
use crate::adapters;
use crate::engine::Engine;
use crate::rl::trainer::{Promotion, Trainer};
use crate::store::{Store, SubjectKey};

/// Adapters on their way in or out.
const ADAPTER_TRANSFERS: usize = 2;
/// Requests whose pictures are being read, or wait for it.
const UPLOADS: usize = 32;

/// The state of every route.
pub type App = Arc<AppState>;

/// The handles and settings that the routes use.
pub struct AppState {
    /// Where requests go.
    pub engine: Engine,
    /// Learns from them; `None` when the model takes no adapters.
    pub trainer: Option<Trainer>,
    /// How what was learned gets into service; `None` when nothing is learned.
    pub learning: Option<Promotion>,
    /// Where completions and ratings are kept.
    pub store: Arc<dyn Store>,
    /// What a request may ask for.
    pub limits: ApiLimits,
    /// What it gets when it does not say.
    pub defaults: Defaults,
    /// The device in words, for `/info`.
    pub device: String,
    /// How the weights of products are kept, for `/info`.
    pub weights: &'static str,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
    /// Keyed hash for the ids of end users.
    pub subjects: SubjectKey,
    /// How far the shutdown is.
    pub shutdown: Shutdown,
    /// What is kept back from deadlines.
    pub reserve: Reserve,
    /// Pictures that are drawn or read at the same time.
    pub renders: Arc<Semaphore>,
    /// Requests whose pictures are being read, or wait for it: each is in memory.
    pub uploads: Arc<Semaphore>,
    /// Bytes of an imported adapter's tensors.
    pub adapter_bytes: u64,
    /// Adapters that are on their way in or out at the same time: each is in memory.
    pub adapter_transfers: Arc<Semaphore>,
}

impl AppState {
    /// State with default limits and settings; the fields are public for what differs.
    #[must_use]
    pub fn new(engine: Engine, store: Arc<dyn Store>, metrics: PrometheusHandle, subjects: SubjectKey) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            engine,
            trainer: None,
            learning: None,
            store,
            limits: ApiLimits::default(),
            defaults: Defaults::default(),
            device: "cpu".to_owned(),
            weights: "f32",
            metrics,
            subjects,
            shutdown: Shutdown::default(),
            renders: Arc::new(Semaphore::new(threads)),
            reserve: Reserve::default(),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            adapter_bytes: adapters::Limits::default().file_bytes,
            adapter_transfers: Arc::new(Semaphore::new(ADAPTER_TRANSFERS)),
        }
    }
    /// The learner and its adapters.
    pub(super) fn trainer(&self) -> Result<&Trainer, ApiError> {
        self.trainer.as_ref().ok_or(ApiError::Off("this model takes no adapters, so there is nothing to learn with"))
    }
}

/// Two signals of a graceful stop, and the time between them.
#[derive(Debug, Clone)]
pub struct Shutdown {
    /// `/ready` says no and new requests are refused.
    pub draining: CancellationToken,
    /// What still runs is cut off.
    pub cut: CancellationToken,
    /// Time that running requests get to finish.
    pub drain: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { draining: CancellationToken::new(), cut: CancellationToken::new(), drain: Duration::from_secs(30) }
    }
}
