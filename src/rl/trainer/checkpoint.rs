//! What a run needs to go on after a crash: the policy, and how far it came. Written after every batch, replaced whole.
//! The data are in the log: a run that finds the same data again goes on where the last one was cut off.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::data::Batch;
use crate::diffusion::rng::mix64;
use crate::rl::RlError;
use crate::rl::policy::Policy;
use crate::rl::update::UpdateReport;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// What the run learns, from which version: see [`fingerprint`].
    pub(super) fingerprint: u64,
    /// Batches done, over all epochs.
    pub(super) done: usize,
    /// Optimiser steps of the policy.
    pub(super) steps: u64,
    /// What the batches did.
    pub(super) reports: Vec<UpdateReport>,
}

/// Two runs with the same one do the same: they start from the same version and take the same completions, judged
/// alike, in the same order.
pub(super) fn fingerprint(parent: &str, batches: &[Batch]) -> u64 {
    let judged = batches.iter().flat_map(|batch| &batch.judged);
    let parent = parent.bytes().fold(0xF1, |hash, byte| mix64(hash ^ u64::from(byte)));
    judged.fold(parent, |hash, one| mix64(mix64(hash ^ one.sample.id) ^ one.advantage.to_bits()))
}

/// The files of the run in progress.
#[derive(Debug, Clone)]
pub(super) struct Checkpoint {
    dir: PathBuf,
}

impl Checkpoint {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("training") }
    }

    /// Replaces the checkpoint. The tensors come first: progress never names more than they hold.
    pub(super) fn save(&self, progress: &Progress, policy: &Policy) -> Result<(), RlError> {
        fs::create_dir_all(&self.dir).map_err(|e| self.failed(&e))?;
        let tensors: std::collections::HashMap<String, Tensor> = policy.state().into_iter().collect();
        let name = format!("policy-{}.safetensors", progress.done);
        candle_core::safetensors::save(&tensors, self.dir.join(&name))?;
        let text = serde_json::to_vec(progress).map_err(|e| RlError::invalid("checkpoint", e.to_string()))?;
        let partial = self.dir.join("progress.json.partial");
        let write = || -> std::io::Result<()> {
            File::open(self.dir.join(&name))?.sync_all()?;
            let mut file = File::create(&partial)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&partial, self.dir.join("progress.json"))?;
            File::open(&self.dir)?.sync_all()?;
            // Those before are of no use now.
            for entry in fs::read_dir(&self.dir)?.flatten() {
                let old = entry.file_name().to_string_lossy().starts_with("policy-") && entry.file_name() != *name;
                if old {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        write().map_err(|e| self.failed(&e))
    }

    /// Where the run with this fingerprint stands; `None` when there is no checkpoint of it.
    pub(super) fn load(
        &self,
        fingerprint: u64,
        policy: &mut Policy,
        device: &Device,
    ) -> Result<Option<Progress>, RlError> {
        let Ok(text) = fs::read(self.dir.join("progress.json")) else { return Ok(None) };
        let Ok(progress) = serde_json::from_slice::<Progress>(&text) else { return Ok(None) };
        if progress.fingerprint != fingerprint {
            return Ok(None);
        }
        let tensors =
            candle_core::safetensors::load(self.dir.join(format!("policy-{}.safetensors", progress.done)), device)?;
        policy.restore(progress.steps, |name| tensors.get(name).cloned())?;
        Ok(Some(progress))
    }

    /// Forgets the run.
    pub(super) fn clear(&self) -> Result<(), RlError> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.failed(&error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, error: &std::io::Error) -> RlError {
        RlError::Refused(format!("checkpoint in {}: {error}", self.dir.display()))
    }
}
