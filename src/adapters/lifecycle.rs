//! The life of a version, and which version a request gets. Pure: nothing is stored or served here.
//!
//! Candidate → (Canary →) Active → Retired, and back to Active when a later version is rolled back. Rejected and
//! RolledBack are ends: a version that failed is not tried again under the same number.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{AdapterError, VersionId};

/// Where a version is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Made, and not served but to those who ask for it.
    Candidate,
    /// Refused by the gate or by an operator.
    Rejected,
    /// Served to a share of the subjects.
    Canary,
    /// What everybody else gets.
    Active,
    /// Was active, until a later version took its place.
    Retired,
    /// Was canary or active, and taken back.
    RolledBack,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::Candidate, Self::Rejected, Self::Canary, Self::Active, Self::Retired, Self::RolledBack];

    /// Whether a version may go from here to `next`.
    #[must_use]
    pub fn allows(self, next: Self) -> bool {
        use Status::{Active, Canary, Candidate, Rejected, Retired, RolledBack};
        matches!(
            (self, next),
            (Candidate, Rejected | Canary | Active)
                | (Canary, Active | RolledBack)
                | (Active, Retired | RolledBack)
                | (Retired, Active)
        )
    }

    /// `next`, when it is allowed.
    ///
    /// # Errors
    /// Names both, and what would be allowed.
    pub fn step(self, next: Self) -> Result<Self, AdapterError> {
        if self.allows(next) {
            return Ok(next);
        }
        let allowed: Vec<String> = Self::ALL.iter().filter(|&&to| self.allows(to)).map(Self::to_string).collect();
        let allowed = if allowed.is_empty() { "nothing: make a new version".to_owned() } else { allowed.join(", ") };
        Err(AdapterError::Lifecycle(format!("is {self} and cannot become {next}; from here it can become {allowed}")))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["candidate", "rejected", "canary", "active", "retired", "rolled_back"][*self as usize])
    }
}

/// Which versions are served, to whom. A value: every change is a new one with the next generation, so that two
/// changes of the same generation cannot both be stored (compare and swap).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Routes {
    generation: u64,
    active: VersionId,
    canary: Option<(VersionId, f64)>,
}

/// [`Routes`] as read, before its share is checked.
#[derive(Deserialize)]
struct Stored {
    generation: u64,
    active: VersionId,
    canary: Option<(VersionId, f64)>,
}

impl TryFrom<Stored> for Routes {
    type Error = AdapterError;

    fn try_from(stored: Stored) -> Result<Self, AdapterError> {
        let routes = Self { generation: stored.generation, active: stored.active, canary: None };
        match stored.canary {
            Some((canary, share)) => Ok(Self { canary: Some(routes.check(canary, share)?), ..routes }),
            None => Ok(routes),
        }
    }
}

impl Default for Routes {
    /// Everybody gets `base@0`.
    fn default() -> Self {
        Self { generation: 0, active: VersionId::base(), canary: None }
    }
}

impl Routes {
    /// Counts the changes.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The version that all get who are not in the canary.
    #[must_use]
    pub fn active(&self) -> &VersionId {
        &self.active
    }

    /// The version under trial, and the share of subjects that get it, in `(0, 1]`.
    #[must_use]
    pub fn canary(&self) -> Option<(&VersionId, f64)> {
        self.canary.as_ref().map(|(id, share)| (id, *share))
    }

    /// The same with `id` for everybody, and no canary.
    #[must_use]
    pub fn with_active(&self, id: VersionId) -> Self {
        Self { generation: self.generation + 1, active: id, canary: None }
    }

    /// The same with `id` for a `share` of the subjects; of a canary that runs already, the share is changed.
    ///
    /// # Errors
    /// When the share is not in `(0, 1]`, `id` is the active version, or another canary runs.
    pub fn with_canary(&self, id: VersionId, share: f64) -> Result<Self, AdapterError> {
        if let Some((other, _)) = self.canary.as_ref().filter(|(other, _)| *other != id) {
            return Err(AdapterError::Lifecycle(format!(
                "{id}: {other} is the canary; promote it or take it back first"
            )));
        }
        let canary = Some(self.check(id, share)?);
        Ok(Self { generation: self.generation + 1, canary, active: self.active.clone() })
    }

    /// The same without a canary.
    #[must_use]
    pub fn without_canary(&self) -> Self {
        Self { generation: self.generation + 1, active: self.active.clone(), canary: None }
    }

    fn check(&self, canary: VersionId, share: f64) -> Result<(VersionId, f64), AdapterError> {
        if canary == self.active {
            return Err(AdapterError::Lifecycle(format!("{canary} is active; a canary is another version")));
        }
        if !(share > 0.0 && share <= 1.0) {
            return Err(AdapterError::Lifecycle(format!(
                "{canary}: share is {share}; it must be above 0 and at most 1"
            )));
        }
        Ok((canary, share))
    }

    /// The version of a request, and the probability with which such a request gets it (for importance weights).
    ///
    /// A subject (any hash of who asks) always gets the same one: its place in `[0, 1)` depends on itself and on the
    /// canary's version only, and the canary is everybody below the share. Growing the share therefore only adds
    /// subjects, and the next canary meets others first. Without a subject, `key` (of the request) decides.
    #[must_use]
    pub fn assign(&self, subject: Option<&[u8]>, key: u64) -> (VersionId, f64) {
        let Some((canary, share)) = &self.canary else {
            return (self.active.clone(), 1.0);
        };
        if place(canary, subject, key) < *share {
            (canary.clone(), *share)
        } else {
            (self.active.clone(), 1.0 - *share)
        }
    }
}

/// Where a subject or an anonymous request stands in `[0, 1)` with regard to a canary; 53 bits.
fn place(canary: &VersionId, subject: Option<&[u8]>, key: u64) -> f64 {
    // The name has no NUL and the tag follows it, so no two questions are the same bytes.
    let hash = Sha256::new().chain_update(canary.to_string()).chain_update([0]);
    let digest = match subject {
        Some(subject) => hash.chain_update([1]).chain_update(subject),
        None => hash.chain_update([2]).chain_update(key.to_le_bytes()),
    }
    .finalize();
    let bits = digest.iter().take(8).fold(0u64, |bits, &byte| (bits << 8) | u64::from(byte));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> VersionId {
        text.parse().unwrap()
    }

    fn routes(share: f64) -> Routes {
        Routes::default().with_active(id("taste@1")).with_canary(id("taste@2"), share).unwrap()
    }

    #[test]
    fn the_life_of_a_version() {
        use Status::{Active, Canary, Candidate, Rejected, Retired, RolledBack};
        let allowed: Vec<(Status, Status)> = Status::ALL
            .into_iter()
            .flat_map(|from| Status::ALL.map(|to| (from, to)))
            .filter(|(from, to)| from.allows(*to))
            .collect();
        let expected = [
            (Candidate, Rejected),
            (Candidate, Canary),
            (Candidate, Active),
            (Canary, Active),
            (Canary, RolledBack),
            (Active, Retired),
            (Active, RolledBack),
            (Retired, Active),
        ];
        assert_eq!(allowed, expected);
        let refusal = Retired.step(Canary).unwrap_err().to_string();
        assert!(refusal.contains("retired") && refusal.contains("canary") && refusal.contains("active"), "{refusal}");
        assert!(Rejected.step(Active).unwrap_err().to_string().contains("new version"));
        for status in Status::ALL {
            assert_eq!(serde_json::to_string(&status).unwrap(), format!("\"{status}\""));
        }
    }

    #[test]
    fn routes_are_stored_and_checked_when_read() {
        let routes = routes(0.25);
        let json = serde_json::to_string(&routes).unwrap();
        assert_eq!(json, r#"{"generation":2,"active":"taste@1","canary":["taste@2",0.25]}"#);
        assert_eq!(serde_json::from_str::<Routes>(&json).unwrap(), routes);
        for wrong in [json.replace("0.25", "0.0"), json.replace("0.25", "1.5"), json.replace("taste@2", "taste@1")] {
            assert!(serde_json::from_str::<Routes>(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn changes_count_generations_and_refuse_nonsense() {
        let canary = routes(0.1);
        assert_eq!((canary.generation(), canary.with_active(id("taste@2")).generation()), (2, 3));
        assert_eq!(canary.without_canary().canary(), None);
        assert_eq!(canary.with_active(id("taste@2")).canary(), None);
        assert_eq!(canary.with_canary(id("taste@2"), 0.5).unwrap().canary(), Some((&id("taste@2"), 0.5)));
        for share in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(canary.with_canary(id("taste@2"), share).is_err(), "{share}");
        }
        assert!(canary.with_canary(id("taste@1"), 0.5).is_err());
        assert!(canary.with_canary(id("taste@3"), 0.5).unwrap_err().to_string().contains("taste@2"));
    }

    #[test]
    fn without_a_canary_everybody_gets_the_active_version() {
        assert_eq!(Routes::default().assign(None, 7), (VersionId::base(), 1.0));
        assert_eq!(routes(1.0).assign(Some(b"x"), 7), (id("taste@2"), 1.0));
    }

    #[test]
    fn shares_are_what_they_say() {
        let n = 20_000u64;
        for share in [0.01, 0.1, 0.5, 0.9] {
            let routes = routes(share);
            let canaries = |subject: fn(u64) -> Option<[u8; 8]>| {
                let got = (0..n).filter(|&i| {
                    let (version, probability) = routes.assign(subject(i).as_ref().map(<[u8; 8]>::as_slice), i);
                    let canary = version == id("taste@2");
                    assert_eq!(probability, if canary { share } else { 1.0 - share });
                    canary
                });
                got.count() as f64 / n as f64
            };
            // Five standard errors; the hash is fixed, so this passes always or never.
            let bound = 5.0 * (share * (1.0 - share) / n as f64).sqrt();
            for measured in [canaries(|i| Some(i.to_be_bytes())), canaries(|_| None)] {
                assert!((measured - share).abs() < bound, "{measured} of {share}");
            }
        }
    }

    #[test]
    fn the_next_canary_meets_other_subjects() {
        let (first, second) = (routes(0.5), Routes::default().with_canary(id("taste@3"), 0.5).unwrap());
        let in_canary =
            |routes: &Routes, i: u32| routes.assign(Some(&i.to_le_bytes()), 0).0 == *routes.canary().unwrap().0;
        let both = (0..4000).filter(|&i| in_canary(&first, i) && in_canary(&second, i)).count();
        assert!((both as f64 / 4000.0 - 0.25).abs() < 0.04, "{both}");
    }

    proptest! {
        #[test]
        fn a_subject_stays_where_it_is(subject in proptest::collection::vec(any::<u8>(), 0..40), share in 0.001..=1.0f64, keys in any::<(u64, u64)>()) {
            let routes = routes(share);
            prop_assert_eq!(routes.assign(Some(&subject), keys.0), routes.assign(Some(&subject), keys.1));
            // Not even another active version moves it.
            let other = Routes::default().with_active(id("other@9")).with_canary(id("taste@2"), share).unwrap();
            let canary = |routes: &Routes| routes.assign(Some(&subject), 0).0 == id("taste@2");
            prop_assert_eq!(canary(&routes), canary(&other));
        }

        #[test]
        fn growing_the_share_moves_nobody_out(subject in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)), key in any::<u64>(), shares in (0.001..=1.0f64, 0.001..=1.0f64)) {
            let (small, large) = (shares.0.min(shares.1), shares.0.max(shares.1));
            let canary = |share| routes(share).assign(subject.as_deref(), key).0 == id("taste@2");
            prop_assert!(!canary(small) || canary(large));
        }
    }
}
