//! Group commit. One task owns the only connection that writes; writes wait for it in a bounded queue, share a
//! transaction and its one fsync, and are answered when that has returned.
//!
//! Lives here: the queue, batches, transactions. Does not: SQL of a write (see `operations`).

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Executor};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::StoreError;

/// Bounds of the write queue.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Writes that may wait; more are refused with [`StoreError::Full`].
    pub queue: usize,
    /// Writes in one transaction.
    pub batch: usize,
    /// How long a batch may wait for as many writes as the last one had. A lone writer never waits.
    pub window: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue: 4096, batch: 256, window: Duration::from_millis(3) }
    }
}

/// One change to the database, made of statements that either all take effect or fail.
#[async_trait]
pub(super) trait Operation: Send + Sync + 'static {
    /// What the caller is told.
    type Output: Send;

    /// Makes the change. Must leave the database untouched when it returns an error other than `Database`.
    async fn apply(&self, connection: &mut SqliteConnection) -> Result<Self::Output, StoreError>;
}

/// An operation and the one who waits for it.
struct Pending<O: Operation> {
    operation: O,
    outcome: Option<Result<O::Output, StoreError>>,
    reply: oneshot::Sender<Result<O::Output, StoreError>>,
}

/// [`Pending`] of any operation.
#[async_trait]
trait Job: Send {
    /// Applies the operation and keeps its outcome. False when the transaction must be rolled back.
    async fn apply(&mut self, connection: &mut SqliteConnection) -> bool;

    /// Tells the outcome, or why it could not be made durable.
    fn answer(self: Box<Self>, durable: Result<(), StoreError>);
}

#[async_trait]
impl<O: Operation> Job for Pending<O> {
    async fn apply(&mut self, connection: &mut SqliteConnection) -> bool {
        let outcome = self.operation.apply(connection).await;
        let sound = !matches!(outcome, Err(StoreError::Database(_)));
        self.outcome = Some(outcome);
        sound
    }

    fn answer(self: Box<Self>, durable: Result<(), StoreError>) {
        let Self { outcome, reply, .. } = *self;
        let untouched = || Err(StoreError::Database("the write was not attempted".into()));
        let outcome = durable.and_then(|()| outcome.unwrap_or_else(untouched));
        // The caller may be gone; the write stands.
        drop(reply.send(outcome));
    }
}

/// The way into the queue.
pub(super) struct Queue {
    jobs: mpsc::Sender<Box<dyn Job>>,
    closing: Arc<Notify>,
    limit: usize,
}

impl Queue {
    /// Queues `operation` and waits until its transaction is on stable storage.
    pub(super) async fn write<O: Operation>(&self, operation: O) -> Result<O::Output, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Pending { operation, outcome: None, reply });
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Full { limit: self.limit },
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Fails when no write can succeed any more.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.jobs.is_closed() {
            return Err(closed());
        }
        Ok(())
    }

    /// Lets the writer finish what is queued, and end.
    pub(super) fn close(&self) {
        self.closing.notify_one();
    }
}

fn closed() -> StoreError {
    StoreError::Database("it is closed; the server is stopping".into())
}

/// Owns the writing connection and the lock on the data directory.
pub(super) struct Writer {
    connection: SqliteConnection,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    closing: Arc<Notify>,
    limits: Limits,
    /// Held until the last write is done.
    lock: File,
}

impl Writer {
    /// A writer and the queue that feeds it. The writer does nothing until it [runs](Self::run).
    pub(super) fn new(connection: SqliteConnection, lock: File, limits: Limits) -> (Self, Queue) {
        let limit = limits.queue.max(1);
        let (sender, jobs) = mpsc::channel(limit);
        let closing = Arc::new(Notify::new());
        let queue = Queue { jobs: sender, closing: closing.clone(), limit };
        let writer = Self { connection, jobs, closing, limits, lock };
        (writer, queue)
    }

    /// Writes until the queue is closed and empty, then closes the database and unlocks the directory.
    pub(super) async fn run(mut self) {
        let mut company = 1;
        while let Some(batch) = self.next_batch(company).await {
            company = batch.len();
            self.write(batch).await;
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "the log's database did not close cleanly; the next start recovers it");
        }
        drop(self.lock);
    }

    /// Waits for a write and takes those queued behind it. When the last batch had `company`, its authors are about to
    /// write again (each waits for an answer first), and a short wait for them saves an fsync; cf. PostgreSQL's
    /// `commit_delay`. `None` at the end.
    async fn next_batch(&mut self, company: usize) -> Option<Vec<Box<dyn Job>>> {
        let limit = self.limits.batch.max(1);
        let mut batch = Vec::new();
        tokio::select! {
            _ = self.jobs.recv_many(&mut batch, limit) => {}
            () = self.closing.notified() => {
                self.jobs.close();
                self.jobs.recv_many(&mut batch, limit).await;
            }
        }
        if batch.is_empty() {
            return None;
        }
        let deadline = Instant::now() + self.limits.window;
        while batch.len() < company.min(limit) {
            let room = limit - batch.len();
            match timeout_at(deadline, self.jobs.recv_many(&mut batch, room)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        Some(batch)
    }

    /// Makes a batch durable and answers it. A write that the database refuses fails alone: all are repeated, each in
    /// its own transaction.
    async fn write(&mut self, mut batch: Vec<Box<dyn Job>>) {
        let whole = self.transaction(&mut batch).await;
        if batch.len() == 1 || !matches!(whole, Ok(false)) {
            return answer(batch, &whole);
        }
        let mut last = whole;
        for job in batch {
            let mut alone = vec![job];
            // A database that could not begin or commit is not asked again for each of the rest.
            if last.is_ok() {
                last = self.transaction(&mut alone).await;
            }
            answer(alone, &last);
        }
    }

    /// Runs `jobs` in one transaction. False when one of them broke it and all was rolled back.
    async fn transaction(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<bool, StoreError> {
        let result = self.attempt(jobs).await;
        if !matches!(result, Ok(true)) {
            // Fails when SQLite has rolled back by itself, which is as good.
            if let Err(error) = self.connection.execute("ROLLBACK").await {
                tracing::debug!(%error, "rollback");
            }
        }
        if let Err(error) = &result {
            tracing::error!(%error, writes = jobs.len(), "the log could not be written");
        }
        result
    }

    async fn attempt(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<bool, StoreError> {
        self.connection.execute("BEGIN IMMEDIATE").await?;
        for job in jobs {
            if !job.apply(&mut self.connection).await {
                return Ok(false);
            }
        }
        self.connection.execute("COMMIT").await?;
        Ok(true)
    }
}

fn answer(jobs: Vec<Box<dyn Job>>, transaction: &Result<bool, StoreError>) {
    for job in jobs {
        // After a rollback the outcome of the job that caused it says why.
        job.answer(transaction.clone().map(|_| ()));
    }
}
