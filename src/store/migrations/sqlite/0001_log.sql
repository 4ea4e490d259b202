-- The log, version 1. uuid: BLOB(16). Times: INTEGER, microseconds since the epoch. JSON: TEXT.
-- Arrays: BLOB of 4-byte little-endian elements. Small columns come first: SQLite reads a row from its start, and
-- rating a completion must not walk through its payload.

CREATE TABLE meta (
  key   TEXT PRIMARY KEY,
  value BLOB NOT NULL
) STRICT;

-- Keys the hash of users' ids. SQLite seeds this generator (ChaCha20) from the operating system.
INSERT INTO meta (key, value) VALUES ('subject_key', randomblob(32));

CREATE TABLE completion (
  seq                 INTEGER PRIMARY KEY,
  id                  BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
  adapter             TEXT    NOT NULL,
  created_us          INTEGER NOT NULL,
  group_id            BLOB    NOT NULL CHECK (length(group_id) = 16),
  sample_index        INTEGER NOT NULL CHECK (sample_index >= 0),
  kind                INTEGER NOT NULL CHECK (kind IN (0, 1)), -- 0 text, 1 image
  model               TEXT    NOT NULL,
  base_sha256         TEXT    NOT NULL,
  seed                INTEGER NOT NULL,                        -- 64 bits, two's complement
  finish_reason       TEXT    NOT NULL,
  steps               INTEGER NOT NULL CHECK (steps >= 0),
  positions_evaluated INTEGER NOT NULL CHECK (positions_evaluated >= 0),
  queue_ms            REAL    NOT NULL CHECK (abs(queue_ms) < 1e308),
  denoise_ms          REAL    NOT NULL CHECK (abs(denoise_ms) < 1e308),
  grid_rows           INTEGER CHECK (grid_rows >= 0),
  grid_columns        INTEGER CHECK (grid_columns >= 0),
  subject_hash        BLOB,
  params              TEXT    NOT NULL CHECK (json_valid(params)),
  metadata            TEXT    NOT NULL CHECK (json_valid(metadata)),
  prompt              TEXT,
  text                TEXT    NOT NULL,
  prompt_ids          BLOB    NOT NULL CHECK (length(prompt_ids) % 4 = 0),
  tokens              BLOB    NOT NULL CHECK (length(tokens) % 4 = 0),
  commit_steps        BLOB    NOT NULL CHECK (length(commit_steps) IN (0, length(tokens))),
  logprobs            BLOB    NOT NULL CHECK (length(logprobs) IN (0, length(tokens))),
  CHECK ((grid_rows IS NULL) = (grid_columns IS NULL))
) STRICT;

CREATE INDEX completion_group ON completion (group_id, sample_index);

-- Events, appended only. A rating supersedes the one before it of the same completion, metric and subject; a tombstone
-- supersedes the rating that it takes back. Effective is a rating that nothing supersedes. NaN is stored as NULL by
-- SQLite, so the check on value_num refuses it too.
CREATE TABLE feedback (
  seq           INTEGER PRIMARY KEY,
  id            BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
  completion_id BLOB    NOT NULL REFERENCES completion (id) ON DELETE CASCADE,
  metric        TEXT    NOT NULL,
  kind          INTEGER NOT NULL CHECK (kind IN (0, 1, 2, 3)), -- 0 bool, 1 number, 2 text, 3 tombstone
  value_num     REAL    CHECK (abs(value_num) < 1e308),
  value_text    TEXT,
  subject_hash  BLOB,
  supersedes    BLOB,
  idem_key      TEXT    UNIQUE,
  body_sha256   BLOB    NOT NULL,
  created_us    INTEGER NOT NULL,
  CHECK ((value_num IS NOT NULL) = (kind IN (0, 1))),
  CHECK ((value_text IS NOT NULL) = (kind = 2)),
  CHECK (kind <> 3 OR supersedes IS NOT NULL)
) STRICT;

CREATE INDEX feedback_target ON feedback (completion_id, metric, subject_hash, seq);
CREATE INDEX feedback_superseded ON feedback (supersedes) WHERE supersedes IS NOT NULL;
