//! From a candidate to what everybody gets, and back: the life of versions, recorded in the store and shown to the
//! engine, in this order, so that a crash between the two is mended by the next start.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::RlError;
use crate::adapters::{self, Adapter, Routes, Status, VersionId};
use crate::engine::{Engine, Serving};
use crate::store::{Author, Change, NewAdapter, Store};
use crate::telemetry::metrics as names;

/// The channel of all requests.
const CHANNEL: &str = "default";
/// Versions kept in memory beside the routed ones, newest first: those that completions still to be learned from may
/// have been made with.
const KEPT: usize = 8;

/// Changes which versions are served. One at a time; every change is a compare-and-swap in the store and one exchange
/// of a pointer in the engine.
pub struct Publisher {
    engine: Engine,
    store: Arc<dyn Store>,
    files: Arc<adapters::Registry>,
    turn: Mutex<()>,
}

/// Who asks for a change and why; goes to the audit trail.
#[derive(Debug, Clone)]
pub struct Order {
    /// A person, or `trainer`.
    pub actor: String,
    /// In their words.
    pub reason: String,
    /// Term of the trainer's lease, when the trainer asks.
    pub term: Option<u64>,
}

impl Order {
    /// The same for the store.
    #[must_use]
    pub fn author(&self) -> Author {
        Author { actor: self.actor.clone(), detail: json!({ "reason": self.reason }), term: self.term }
    }
}

impl Publisher {
    /// Shows the engine what the store says is served.
    ///
    /// # Errors
    /// When the store cannot be read. A routed version whose files are damaged is logged, and the base is served.
    pub async fn open(engine: Engine, store: Arc<dyn Store>, files: Arc<adapters::Registry>) -> Result<Self, RlError> {
        let this = Self { engine, store, files, turn: Mutex::new(()) };
        let routes = this.stored_routes().await?;
        if let Err(error) = this.show(routes).await {
            tracing::error!(%error, "the routed adapter cannot be served; serving the base");
            this.engine.publish(Serving::default());
        }
        Ok(this)
    }

    /// Who gets which version.
    #[must_use]
    pub fn routes(&self) -> Routes {
        self.engine.serving().routes().clone()
    }

    /// The stored files of versions.
    #[must_use]
    pub fn files(&self) -> &Arc<adapters::Registry> {
        &self.files
    }

    /// A version in memory, read from its files when it is not there.
    ///
    /// # Errors
    /// When there is no such version or its files are damaged.
    pub async fn version(&self, id: &VersionId) -> Result<Arc<Adapter>, RlError> {
        if let Some(adapter) = self.engine.serving().get(id) {
            return Ok(Arc::clone(adapter));
        }
        let (files, id) = (Arc::clone(&self.files), id.clone());
        Ok(Arc::new(blocking(move || files.load(&id)).await??))
    }

    /// Records a committed version as a candidate and keeps it in memory: it can be asked for, nobody gets it unasked.
    ///
    /// # Errors
    /// When the store refuses it.
    pub async fn add(
        &self,
        adapter: Arc<Adapter>,
        run: Option<Uuid>,
        gate: Value,
        order: &Order,
    ) -> Result<(), RlError> {
        let _turn = self.turn.lock().await;
        let manifest = adapter.manifest.as_ref();
        let manifest = manifest.ok_or_else(|| RlError::invalid("adapter", "base@0 is always there"))?;
        let weights = manifest.files.values().max_by_key(|file| file.bytes);
        let row = NewAdapter {
            id: adapter.id.to_string(),
            parent: manifest.provenance.parent.as_ref().map(VersionId::to_string),
            base_sha256: manifest.base_sha256.clone(),
            run,
            status: Status::Candidate.to_string(),
            sha256: weights.map(|file| file.sha256.clone()).unwrap_or_default(),
            bytes: weights.map_or(0, |file| file.bytes),
            rank: manifest.rank as u32,
            manifest: serde_json::to_value(manifest).map_err(|e| RlError::invalid("manifest", e.to_string()))?,
            gate,
        };
        self.store.add_adapter(row, order.author()).await?;
        let serving = self.engine.serving();
        let loaded = serving.loaded().cloned().chain([adapter]);
        self.engine.publish(Serving::new(serving.routes().clone(), trim(loaded, serving.routes()))?);
        Ok(())
    }

    /// Gives everybody (`share` `None`), or a share of the subjects, version `id`.
    ///
    /// # Errors
    /// `Lifecycle` when its status does not allow it, `Conflict` when somebody else has changed the routes.
    pub async fn promote(&self, id: &VersionId, share: Option<f64>, order: &Order) -> Result<Routes, RlError> {
        let _turn = self.turn.lock().await;
        let routes = self.stored_routes().await?;
        let (next, to) = match share {
            Some(share) => (routes.with_canary(id.clone(), share)?, Status::Canary),
            None => (routes.with_active(id.clone()), Status::Active),
        };
        let mut moves = Vec::new();
        if !id.is_base() {
            moves.push((id.clone(), to));
        }
        if share.is_none() {
            let before = [Some(routes.active()), routes.canary().map(|(canary, _)| canary)];
            for (at, old) in before.into_iter().enumerate().filter_map(|(at, old)| Some((at, old?))) {
                if old != id && !old.is_base() {
                    moves.push((old.clone(), if at == 0 { Status::Retired } else { Status::RolledBack }));
                }
            }
        }
        self.change(moves, &routes, next, order).await
    }

    /// Takes the canary back, or else the active version; `to` names what is served instead (`None`: the active
    /// version's parent, or the base).
    ///
    /// # Errors
    /// When nothing was promoted, or `to` cannot be served.
    pub async fn roll_back(&self, to: Option<&VersionId>, order: &Order) -> Result<Routes, RlError> {
        let _turn = self.turn.lock().await;
        let routes = self.stored_routes().await?;
        if let (Some((canary, _)), None) = (routes.canary(), to) {
            let moves = vec![(canary.clone(), Status::RolledBack)];
            return self.change(moves, &routes, routes.without_canary(), order).await;
        }
        let active = routes.active().clone();
        if active.is_base() {
            return Err(RlError::Refused("base@0 is served; there is nothing to roll back".to_owned()));
        }
        let target = match to {
            Some(to) => to.clone(),
            None => self.last_good(&active).await?,
        };
        let mut moves = vec![(active, Status::RolledBack)];
        if let Some((canary, _)) = routes.canary() {
            moves.push((canary.clone(), Status::RolledBack));
        }
        if !target.is_base() {
            moves.push((target.clone(), Status::Active));
        }
        self.change(moves, &routes, routes.with_active(target), order).await
    }

    /// Refuses a candidate for good.
    ///
    /// # Errors
    /// When it is not a candidate.
    pub async fn reject(&self, id: &VersionId, order: &Order) -> Result<(), RlError> {
        let _turn = self.turn.lock().await;
        let from = self.status(id).await?;
        let to = from.step(Status::Rejected)?;
        Ok(self.store.set_adapter_status(&id.to_string(), &from.to_string(), &to.to_string(), order.author()).await?)
    }

    /// The newest ancestor that was served before.
    async fn last_good(&self, active: &VersionId) -> Result<VersionId, RlError> {
        let mut at = active.clone();
        loop {
            let row = self.store.adapter(&at.to_string()).await?;
            let parent = row.and_then(|row| row.adapter.parent);
            let Some(parent) = parent.map(|parent| parent.parse::<VersionId>()).transpose()? else {
                return Ok(VersionId::base());
            };
            if parent.is_base() || self.status(&parent).await? == Status::Retired {
                return Ok(parent);
            }
            at = parent;
        }
    }

    async fn status(&self, id: &VersionId) -> Result<Status, RlError> {
        let row = self.store.adapter(&id.to_string()).await?;
        let row = row.ok_or_else(|| adapters::AdapterError::NotFound(id.clone()))?;
        let status = Value::String(row.adapter.status);
        serde_json::from_value(status).map_err(|e| RlError::invalid("status", e.to_string()))
    }

    /// What the store says is served.
    async fn stored_routes(&self) -> Result<Routes, RlError> {
        match self.store.route(CHANNEL).await? {
            None => Ok(Routes::default()),
            Some(row) => serde_json::from_value(row.spec).map_err(|e| RlError::invalid("route", e.to_string())),
        }
    }

    /// Records the moves and the routes, then shows them to the engine.
    async fn change(
        &self,
        moves: Vec<(VersionId, Status)>,
        routes: &Routes,
        next: Routes,
        order: &Order,
    ) -> Result<Routes, RlError> {
        let mut changes = Vec::with_capacity(moves.len() + 1);
        for (id, to) in moves {
            let from = self.status(&id).await?;
            let to = from.step(to)?;
            changes.push(Change::Status { id: id.to_string(), from: from.to_string(), to: to.to_string(), gate: None });
        }
        let spec = serde_json::to_value(&next).map_err(|e| RlError::invalid("route", e.to_string()))?;
        changes.push(Change::Route { channel: CHANNEL.to_owned(), expected: routes.generation(), spec });
        // Read first: nothing is recorded as served that cannot be.
        let serving = self.serving(next.clone()).await?;
        self.store.change_registry(changes, order.author()).await?;
        self.engine.publish(serving);
        metrics::counter!(names::ADAPTER_SWAPS).increment(1);
        tracing::info!(active = %next.active(), canary = ?next.canary().map(|(id, share)| (id.to_string(), share)), actor = order.actor, "adapters routed");
        Ok(next)
    }

    async fn show(&self, routes: Routes) -> Result<(), RlError> {
        let serving = self.serving(routes).await?;
        self.engine.publish(serving);
        Ok(())
    }

    /// `routes` with their versions in memory.
    async fn serving(&self, routes: Routes) -> Result<Serving, RlError> {
        let mut loaded: Vec<Arc<Adapter>> = self.engine.serving().loaded().cloned().collect();
        for id in [Some(routes.active()), routes.canary().map(|(id, _)| id)].into_iter().flatten() {
            if !loaded.iter().any(|adapter| adapter.id == *id) {
                loaded.push(self.version(id).await?);
            }
        }
        Ok(Serving::new(routes.clone(), trim(loaded, &routes))?)
    }
}

/// The routed versions and the newest others.
fn trim(loaded: impl IntoIterator<Item = Arc<Adapter>>, routes: &Routes) -> Vec<Arc<Adapter>> {
    let by_id: BTreeMap<VersionId, Arc<Adapter>> =
        loaded.into_iter().map(|adapter| (adapter.id.clone(), adapter)).collect();
    let routed = |id: &VersionId| id == routes.active() || routes.canary().is_some_and(|(canary, _)| canary == id);
    let mut rest: Vec<&Arc<Adapter>> = by_id.values().filter(|adapter| !routed(&adapter.id)).collect();
    rest.sort_by_key(|adapter| std::cmp::Reverse(adapter.manifest.as_ref().map_or(0, |m| m.provenance.created_us)));
    let kept = rest.into_iter().take(KEPT);
    by_id.values().filter(|adapter| routed(&adapter.id)).chain(kept).cloned().collect()
}

/// Runs what reads or writes files.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RlError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| RlError::Refused(format!("a task failed: {e}")))
}
