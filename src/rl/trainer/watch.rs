//! What people say of a version in service: a canary that does well is given to everybody, and a version that does
//! worse than the one before is taken back, without anybody asking.

use std::sync::{Arc, PoisonError};

use super::{Parts, Shared};
use crate::adapters::VersionId;
use crate::rl::RlError;
use crate::rl::publish::Order;
use crate::store::Outcomes;

/// Standard errors that a difference must exceed.
const SIGMAS: f64 = 2.6;

/// Looks at the version under trial, if there is one.
///
/// # Errors
/// When the store fails.
pub(super) async fn watch(parts: &Parts, shared: &Arc<Shared>, term: u64) -> Result<(), RlError> {
    let config = &parts.config;
    let routes = parts.publisher.routes();
    let (trial, before) = match routes.canary() {
        Some((canary, _)) => (canary.clone(), Some(routes.active().clone())),
        None if shared.promoted.lock().unwrap_or_else(PoisonError::into_inner).is_some() => {
            (routes.active().clone(), parent(parts, routes.active()).await?)
        }
        None => return Ok(()),
    };
    let Some(before) = before else { return Ok(()) };
    let outcomes =
        |id: VersionId| async move { parts.store.adapter_outcomes(&id.to_string(), &config.trial_metric, 0).await };
    let (new, old) = (outcomes(trial.clone()).await?, outcomes(before).await?);
    if new.ratings < config.trial_ratings || old.ratings < config.trial_ratings {
        return Ok(());
    }
    let order = |reason: &str| Order { actor: "trainer".to_owned(), reason: reason.to_owned(), term: Some(term) };
    if worse(&new, &old) {
        tracing::warn!(version = %trial, new = new.mean, old = old.mean, "taken back: people like it less");
        parts.publisher.roll_back(None, &order("people rate it lower than the version before")).await?;
    } else if routes.canary().is_some() {
        parts.publisher.promote(&trial, None, &order("the canary's ratings are no worse")).await?;
    }
    *shared.promoted.lock().unwrap_or_else(PoisonError::into_inner) = None;
    Ok(())
}

async fn parent(parts: &Parts, id: &VersionId) -> Result<Option<VersionId>, RlError> {
    let row = parts.store.adapter(&id.to_string()).await?;
    Ok(row.and_then(|row| row.adapter.parent).map(|parent| parent.parse()).transpose()?)
}

/// Lower by more than chance explains.
fn worse(new: &Outcomes, old: &Outcomes) -> bool {
    let (Some(a), Some(b)) = (new.mean, old.mean) else { return false };
    let error = |o: &Outcomes| o.variance.unwrap_or(0.0) / o.ratings.max(1) as f64;
    b - a > SIGMAS * (error(new) + error(old)).sqrt().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(mean: f64, ratings: u64) -> Outcomes {
        Outcomes { ratings, mean: Some(mean), variance: Some(mean * (1.0 - mean)), ..Outcomes::default() }
    }

    #[test]
    fn only_a_clear_drop_counts() {
        assert!(worse(&outcomes(0.4, 200), &outcomes(0.6, 200)));
        assert!(!worse(&outcomes(0.57, 200), &outcomes(0.6, 200)));
        assert!(!worse(&outcomes(0.4, 10), &outcomes(0.6, 10)));
        assert!(!worse(&outcomes(0.8, 200), &outcomes(0.6, 200)));
        assert!(!worse(&Outcomes::default(), &outcomes(0.6, 200)));
    }
}
