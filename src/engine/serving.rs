//! Which adapters can be asked for, and who gets which. A value: it is published whole, and a request keeps the
//! version that it was given when it was submitted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::EngineError;
use crate::adapters::{Adapter, AdapterError, Routes, VersionId};

/// The adapters in memory and the routes among them.
#[derive(Debug, Clone)]
pub struct Serving {
    routes: Routes,
    loaded: BTreeMap<VersionId, Arc<Adapter>>,
}

/// The version of one request.
#[derive(Debug, Clone)]
pub struct Assigned {
    /// The version.
    pub adapter: Arc<Adapter>,
    /// Probability with which such a request gets it: 1 without a canary, or when it was asked for.
    pub probability: f64,
}

impl Default for Serving {
    /// The base alone.
    fn default() -> Self {
        let base = Arc::new(Adapter::base());
        Self { routes: Routes::default(), loaded: BTreeMap::from([(VersionId::base(), base)]) }
    }
}

impl Serving {
    /// `routes` among `adapters`; the base is always among them.
    ///
    /// # Errors
    /// `NotFound` when a routed version is not there.
    pub fn new(routes: Routes, adapters: impl IntoIterator<Item = Arc<Adapter>>) -> Result<Self, AdapterError> {
        let mut serving = Self { routes, ..Self::default() };
        serving.loaded.extend(adapters.into_iter().map(|adapter| (adapter.id.clone(), adapter)));
        let routed = [Some(serving.routes.active()), serving.routes.canary().map(|(id, _)| id)];
        let missing = routed.into_iter().flatten().find(|id| !serving.loaded.contains_key(id)).cloned();
        match missing {
            Some(missing) => Err(AdapterError::NotFound(missing)),
            None => Ok(serving),
        }
    }

    /// The routes.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The versions in memory.
    pub fn loaded(&self) -> impl Iterator<Item = &Arc<Adapter>> {
        self.loaded.values()
    }

    /// A version in memory.
    #[must_use]
    pub fn get(&self, id: &VersionId) -> Option<&Arc<Adapter>> {
        self.loaded.get(id)
    }

    /// The version of a request: the one it asks for, else the one its subject (or, without one, its own `key`) is
    /// assigned.
    pub(super) fn assign(
        &self,
        wanted: Option<&VersionId>,
        subject: Option<&[u8]>,
        key: u64,
    ) -> Result<Assigned, EngineError> {
        let (id, probability) = match wanted {
            Some(id) => (id.clone(), 1.0),
            None => self.routes.assign(subject, key),
        };
        match self.loaded.get(&id) {
            Some(adapter) => Ok(Assigned { adapter: Arc::clone(adapter), probability }),
            None => {
                let known: Vec<String> = self.loaded.keys().map(VersionId::to_string).collect();
                let message = format!("{id} is not loaded; leave it out, or ask for one of {}", known.join(", "));
                Err(EngineError::Invalid { field: "adapter", message })
            }
        }
    }
}
