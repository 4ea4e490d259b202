//! Rankings of completions: their bounds, their pairs, and how they are stored.

use std::collections::HashSet;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, Sqlite};
use uuid::Uuid;

use super::StoreError;
use super::operations::now_us;
use super::rows::{MAX_HASH_BYTES, MAX_NAME_BYTES, at_most, bytes_of, invalid, uuid};
use super::writer::Operation;

/// Completions in one ranking: 120 pairs.
pub const MAX_RANKED: usize = 16;

const FIRST_ANSWER: &str = "SELECT id, body_sha256, pairs FROM preference WHERE idem_key = ?";

const PROMPT: &str = "SELECT prompt_sha256 FROM completion WHERE id = ?";

const ADD_PREFERENCE: &str = "
INSERT INTO preference (
  id, prompt_sha256, set_sha256, pairs, strength, subject_hash, idem_key, body_sha256, created_us
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";

const ADD_PAIR: &str = "
INSERT INTO preference_pair (preference_seq, chosen_id, rejected_id, tie, weight) VALUES (?, ?, ?, ?, ?)";

/// A ranking to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewPreference {
    /// Ids of completions of one prompt, best first; those in one inner list are equally good. Two to [`MAX_RANKED`].
    pub ranking: Vec<Vec<Uuid>>,
    /// How sure the subject is, 0 to 1.
    pub strength: Option<f64>,
    /// Keyed hash of the subject's id.
    pub subject_hash: Option<Vec<u8>>,
    /// Client's idempotency key; not shared with those of ratings.
    pub idempotency_key: Option<String>,
    /// SHA-256 of the request body, to tell a retry from a reuse of the key.
    pub body_sha256: Vec<u8>,
}

/// What is answered to a ranking; it is on stable storage by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceAck {
    /// UUIDv7.
    pub id: Uuid,
    /// Pairs that it made.
    pub pairs: u32,
    /// The same request had been stored before; this is its first answer.
    pub replayed: bool,
}

/// (better, worse, tie).
type Pair = (Uuid, Uuid, bool);

impl NewPreference {
    /// Checks bounds, so that the database never has to refuse.
    pub(super) fn validate(&self) -> Result<(), StoreError> {
        at_most("idempotency_key", bytes_of(&self.idempotency_key), MAX_NAME_BYTES)?;
        at_most("subject_hash", bytes_of(&self.subject_hash), MAX_HASH_BYTES)?;
        at_most("body_sha256", self.body_sha256.len(), MAX_HASH_BYTES)?;
        if let Some(strength) = self.strength.filter(|strength| !(0.0..=1.0).contains(strength)) {
            return Err(invalid("strength", format!("is {strength}; expected a number from 0 to 1")));
        }
        let ranked = self.ranked().count();
        if !(2..=MAX_RANKED).contains(&ranked) {
            return Err(invalid("ranking", format!("names {ranked} completions; expected 2 to {MAX_RANKED}")));
        }
        if self.ranking.iter().any(Vec::is_empty) {
            return Err(invalid("ranking", "has an empty list of ties; leave it out".into()));
        }
        let mut seen = HashSet::new();
        match self.ranked().find(|id| !seen.insert(*id)) {
            Some(twice) => Err(invalid("ranking", format!("names completion {twice} twice; name each once"))),
            None => Ok(()),
        }
    }

    /// All completions, best first.
    fn ranked(&self) -> impl Iterator<Item = Uuid> {
        self.ranking.iter().flatten().copied()
    }

    /// Each two completions once.
    fn pairs(&self) -> Vec<Pair> {
        let ranked = || self.ranking.iter().enumerate().flat_map(|(rank, ties)| ties.iter().map(move |id| (rank, *id)));
        ranked()
            .enumerate()
            .flat_map(|(at, (rank, better))| {
                ranked().skip(at + 1).map(move |(other, worse)| (better, worse, rank == other))
            })
            .collect()
    }

    /// Names the set of completions, in whatever order they were ranked.
    fn set_sha256(&self) -> [u8; 32] {
        let mut ids: Vec<Uuid> = self.ranked().collect();
        ids.sort_unstable();
        let digest = ids.iter().fold(Sha256::new(), |digest, id| digest.chain_update(id.as_bytes()));
        digest.finalize().into()
    }

    /// The prompt that all its completions share.
    async fn prompt(&self, connection: &mut SqliteConnection) -> Result<Vec<u8>, StoreError> {
        let mut shared: Option<(Uuid, Vec<u8>)> = None;
        for id in self.ranked() {
            let prompt: Vec<u8> = sqlx::query::<Sqlite>(PROMPT)
                .bind(id.as_bytes().as_slice())
                .fetch_optional(&mut *connection)
                .await?
                .ok_or(StoreError::UnknownCompletion(id))?
                .try_get("prompt_sha256")?;
            match &shared {
                Some((first, other)) if *other != prompt => return Err(StoreError::DifferentPrompts(*first, id)),
                Some(_) => {}
                None => shared = Some((id, prompt)),
            }
        }
        shared.map(|(_, prompt)| prompt).ok_or_else(|| invalid("ranking", "is empty".into()))
    }
}

/// Stores a ranking.
pub(super) struct AddPreference(pub(super) NewPreference);

#[async_trait]
impl Operation for AddPreference {
    type Output = PreferenceAck;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<PreferenceAck, StoreError> {
        let preference = &self.0;
        if let Some(key) = &preference.idempotency_key {
            let first = sqlx::query::<Sqlite>(FIRST_ANSWER).bind(key.as_str()).fetch_optional(&mut *connection).await?;
            if let Some(first) = first {
                if first.try_get::<&[u8], _>("body_sha256")? != preference.body_sha256 {
                    return Err(StoreError::IdempotencyMismatch);
                }
                return Ok(PreferenceAck { id: uuid(&first, "id")?, pairs: first.try_get("pairs")?, replayed: true });
            }
        }
        let prompt = preference.prompt(connection).await?;
        let (id, pairs) = (Uuid::now_v7(), preference.pairs());
        let count = u32::try_from(pairs.len()).unwrap_or(u32::MAX);
        let added = sqlx::query::<Sqlite>(ADD_PREFERENCE)
            .bind(id.as_bytes().as_slice())
            .bind(prompt)
            .bind(preference.set_sha256().as_slice())
            .bind(count)
            .bind(preference.strength)
            .bind(preference.subject_hash.as_deref())
            .bind(preference.idempotency_key.as_deref())
            .bind(preference.body_sha256.as_slice())
            .bind(now_us())
            .execute(&mut *connection)
            .await?;
        let others = u32::try_from(preference.ranked().count()).unwrap_or(u32::MAX).saturating_sub(1).max(1);
        for (better, worse, tie) in pairs {
            sqlx::query::<Sqlite>(ADD_PAIR)
                .bind(added.last_insert_rowid())
                .bind(better.as_bytes().as_slice())
                .bind(worse.as_bytes().as_slice())
                .bind(tie)
                .bind(1.0 / f64::from(others))
                .execute(&mut *connection)
                .await?;
        }
        Ok(PreferenceAck { id, pairs: count, replayed: false })
    }
}
