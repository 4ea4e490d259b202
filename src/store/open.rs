//! Opening a data directory: its lock, its permissions, its database and schema.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row, SqlSafeStr, Sqlite};

use super::rows::prompt_sha256;

/// The database, under the data directory.
const DATABASE: &str = "lacuna.db";
/// Locked while a server runs on the data directory; the kernel unlocks it however the server ends.
const LOCK: &str = "lacuna.lock";

/// How long a statement waits for another program that has the database locked, such as a backup.
const BUSY: Duration = Duration::from_secs(5);
/// How long a read waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(10);
/// Connections that read.
const READERS: u32 = 4;
/// Rows that a reader's thread may be ahead of the task that takes them: each wait between the two costs a switch.
const READ_AHEAD: usize = 256;
/// The write-ahead log is cut to this after a checkpoint.
const WAL_BYTES: &str = "67108864";

/// Migrations in order, (version, name, SQL). Released ones never change.
const MIGRATIONS: [(i64, &str, &str); 2] = [
    (1, "log", include_str!("migrations/sqlite/0001_log.sql")),
    (2, "learning", include_str!("migrations/sqlite/0002_learning.sql")),
];

/// A prompt that has no hash yet.
const UNHASHED: &str = "SELECT seq, kind, prompt_ids FROM completion WHERE prompt_sha256 IS NULL LIMIT 1";
const HASH: &str = "UPDATE completion SET prompt_sha256 = ? WHERE seq = ?";

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has it.
    #[error("data directory {} is in use by another server; stop that one or choose another directory", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// A newer release wrote it.
    #[error(
        "the database in {} has schema version {found}, this release knows up to {known}; use the release that wrote \
         it, or another directory",
        dir.display()
    )]
    Newer {
        /// The data directory.
        dir: PathBuf,
        /// Version in the database.
        found: i64,
        /// Newest version known here.
        known: i64,
    },
    /// The file system refused.
    #[error("data directory {} cannot be used: {cause}", dir.display())]
    Io {
        /// The data directory.
        dir: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The database cannot be opened or brought up to date.
    #[error("the database in {} cannot be opened: {problem}", dir.display())]
    Database {
        /// The data directory.
        dir: PathBuf,
        /// What the database said.
        problem: String,
    },
}

/// An open data directory.
pub(super) struct Opened {
    /// Keeps other servers out until it is dropped.
    pub(super) lock: File,
    /// The only connection that writes.
    pub(super) writer: SqliteConnection,
    /// Connections that read.
    pub(super) readers: SqlitePool,
}

/// Creates `dir` where needed, locks it, and opens its database with the newest schema.
pub(super) async fn open(dir: &Path) -> Result<Opened, OpenError> {
    let lock = lock(dir)?;
    let database = |error: sqlx::Error| OpenError::Database { dir: dir.to_owned(), problem: error.to_string() };
    let options =
        SqliteConnectOptions::new().filename(dir.join(DATABASE)).busy_timeout(BUSY).disable_statement_logging();
    let mut writer = options
        .clone()
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // On macOS only this reaches the platters; elsewhere it changes nothing.
        .pragma("fullfsync", "1")
        .pragma("checkpoint_fullfsync", "1")
        // What is deleted is overwritten: people delete what should not be read again.
        .pragma("secure_delete", "1")
        .pragma("journal_size_limit", WAL_BYTES)
        .connect()
        .await
        .map_err(database)?;
    migrate(dir, &mut writer).await?;
    hash_prompts(&mut writer).await.map_err(database)?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(ACQUIRE)
        .connect_with(options.read_only(true).row_buffer_size(READ_AHEAD))
        .await
        .map_err(database)?;
    Ok(Opened { lock, writer, readers })
}

/// Creates the directory and the database's file, readable by their owner only, and takes the lock.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let io = |cause| OpenError::Io { dir: dir.to_owned(), cause };
    create(dir).map_err(io)?;
    let lock = private_file(&dir.join(LOCK)).map_err(io)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse { dir: dir.to_owned() });
        }
        Err(TryLockError::Error(cause)) => return Err(io(cause)),
    }
    // SQLite gives its other files the permissions of this one.
    private_file(&dir.join(DATABASE)).map_err(io)?;
    Ok(lock)
}

/// Creates `dir` with its parents. A directory that exists keeps its permissions.
fn create(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)?;
    // The new name is durable once its parent is.
    #[cfg(unix)]
    if let Some(parent) = dir.canonicalize()?.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

async fn migrate(dir: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let migrations = MIGRATIONS.map(|(version, name, sql)| {
        let kind = MigrationType::Simple;
        Migration::new(version, name.into(), kind, sql.into_sql_str(), false)
    });
    let known = MIGRATIONS.map(|(version, ..)| version);
    let known = known.into_iter().max().unwrap_or(0);
    let migrator = Migrator::with_migrations(migrations.into());
    migrator.run(connection).await.map_err(|error| match error {
        MigrateError::VersionMissing(found) if found > known => OpenError::Newer { dir: dir.to_owned(), found, known },
        other => OpenError::Database { dir: dir.to_owned(), problem: other.to_string() },
    })
}

/// Completes rows that a release before version 2 of the schema wrote.
async fn hash_prompts(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut all = connection.begin().await?;
    while let Some(row) = sqlx::query::<Sqlite>(UNHASHED).fetch_optional(&mut *all).await? {
        let hash = prompt_sha256(row.try_get::<i64, _>("kind")? != 0, row.try_get("prompt_ids")?);
        sqlx::query::<Sqlite>(HASH).bind(hash).bind(row.try_get::<i64, _>("seq")?).execute(&mut *all).await?;
    }
    all.commit().await
}
