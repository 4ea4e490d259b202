//! How an adapter version came about: written once, next to its files, and never changed.
//!
//! What happens to it later (approvals, canaries, rollbacks) is a matter of the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VersionId;

/// Size and hash of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub bytes: u64,
}

/// The feedback that an adapter learned from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataRecord {
    /// Samples used, by lane.
    pub used: BTreeMap<String, u64>,
    /// Samples dropped, by lane and reason.
    pub dropped: BTreeMap<String, BTreeMap<String, u64>>,
    /// Distinct subjects that the feedback came from.
    pub subjects: u64,
    /// Id of the earliest feedback.
    pub first_feedback: Option<String>,
    /// Id of the latest feedback.
    pub last_feedback: Option<String>,
}

/// What whoever makes an adapter says about it. The registry adds what it knows itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// The version that training started from.
    pub parent: Option<VersionId>,
    /// Name of the algorithm, or `import`.
    pub algorithm: String,
    /// Everything that was set.
    pub hyperparameters: Value,
    /// What it learned from.
    pub data: DataRecord,
    /// Reward hooks with their weights.
    pub rewards: Value,
    /// What the gate measured, when it ran before the version was committed.
    pub gate: Value,
    /// When it was made, in µs since 1970.
    pub created_us: i64,
}

/// `manifest.json`. Fields that this build does not know are ignored, those that are missing are empty: an older
/// build reads what a newer one wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name and number.
    pub id: VersionId,
    /// SHA-256 of the base model's weights.
    pub base_sha256: String,
    /// Name of the base model.
    #[serde(default)]
    pub model: String,
    /// The adapter's files by name.
    pub files: BTreeMap<String, FileRecord>,
    /// Largest rank.
    #[serde(default)]
    pub rank: usize,
    /// α; the factors are applied with α/rank.
    #[serde(default)]
    pub alpha: f64,
    /// Names of the projections that are adapted.
    #[serde(default)]
    pub targets: Vec<String>,
    /// Values in the factors.
    #[serde(default)]
    pub parameters: u64,
    /// How it was made.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Version of the program that wrote it.
    #[serde(default)]
    pub build: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_manifest_can_be_read() {
        let text = r#"{"id": "taste@3", "base_sha256": "ab", "files": {}, "signature": "later", "data": {"later": 1}}"#;
        let manifest: Manifest = serde_json::from_str(text).unwrap();
        assert_eq!(manifest.id, "taste@3".parse().unwrap());
        assert_eq!(manifest.provenance, Provenance::default());
        let again: Manifest = serde_json::from_str(&serde_json::to_string(&manifest).unwrap()).unwrap();
        assert_eq!(again, manifest);
    }

    #[test]
    fn what_names_no_version_is_no_manifest() {
        assert!(serde_json::from_str::<Manifest>(r#"{"base_sha256": "ab", "files": {}}"#).is_err());
        assert!(serde_json::from_str::<Manifest>(r#"{"id": "../x@1", "base_sha256": "ab", "files": {}}"#).is_err());
    }
}
