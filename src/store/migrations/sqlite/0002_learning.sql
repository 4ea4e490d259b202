-- Learning, version 2: preferences, what taught which run, adapters and who changed them. Conventions as in version 1.

-- SHA-256 of the kind and the prompt's ids: completions that share it answer the same prompt. SQLite cannot compute it,
-- so rows of version 1 get theirs when the database is opened. It lies behind the payload, hence the covering index.
ALTER TABLE completion ADD COLUMN prompt_sha256 BLOB CHECK (length(prompt_sha256) = 32);
CREATE INDEX completion_prompt ON completion (id, prompt_sha256);
CREATE INDEX completion_unhashed ON completion (seq) WHERE prompt_sha256 IS NULL;

CREATE INDEX completion_adapter ON completion (adapter, created_us);
CREATE INDEX feedback_metric ON feedback (metric, created_us);

-- One ranking of completions of one prompt. set_sha256 names the completions that were ranked, in any order.
CREATE TABLE preference (
  seq           INTEGER PRIMARY KEY,
  id            BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
  prompt_sha256 BLOB    NOT NULL CHECK (length(prompt_sha256) = 32),
  set_sha256    BLOB    NOT NULL CHECK (length(set_sha256) = 32),
  pairs         INTEGER NOT NULL CHECK (pairs > 0),            -- as it was stored; a deletion can leave fewer
  strength      REAL    CHECK (strength BETWEEN 0 AND 1),
  subject_hash  BLOB,
  idem_key      TEXT    UNIQUE,
  body_sha256   BLOB    NOT NULL,
  created_us    INTEGER NOT NULL
) STRICT;

CREATE INDEX preference_set ON preference (set_sha256, subject_hash);

-- What a ranking says of each two of its completions.
CREATE TABLE preference_pair (
  preference_seq INTEGER NOT NULL REFERENCES preference (seq) ON DELETE CASCADE,
  chosen_id      BLOB    NOT NULL REFERENCES completion (id) ON DELETE CASCADE,
  rejected_id    BLOB    NOT NULL REFERENCES completion (id) ON DELETE CASCADE,
  tie            INTEGER NOT NULL CHECK (tie IN (0, 1)),
  weight         REAL    NOT NULL CHECK (weight > 0 AND weight <= 1),
  PRIMARY KEY (preference_seq, chosen_id, rejected_id),
  CHECK (chosen_id <> rejected_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX preference_pair_chosen ON preference_pair (chosen_id);
CREATE INDEX preference_pair_rejected ON preference_pair (rejected_id);

CREATE TRIGGER preference_emptied AFTER DELETE ON preference_pair
WHEN NOT EXISTS (SELECT 1 FROM preference_pair WHERE preference_seq = OLD.preference_seq)
BEGIN
  DELETE FROM preference WHERE seq = OLD.preference_seq;
END;

-- A training run, and which items it used at which value or dropped for which reason. No foreign key to the items:
-- deleting a completion does not unmake what was learnt from it.
CREATE TABLE train_run (
  seq        INTEGER PRIMARY KEY,
  id         BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
  term       INTEGER NOT NULL,
  cause      TEXT    NOT NULL,
  parent     TEXT    NOT NULL,
  status     TEXT    NOT NULL,                                 -- 'running' until it has ended
  config     TEXT    NOT NULL CHECK (json_valid(config)),
  metrics    TEXT    NOT NULL DEFAULT '{}' CHECK (json_valid(metrics)),
  error      TEXT,
  started_us INTEGER NOT NULL,
  ended_us   INTEGER,
  CHECK ((ended_us IS NULL) = (status = 'running'))
) STRICT;

CREATE INDEX train_run_running ON train_run (term) WHERE status = 'running';

CREATE TABLE train_sample (
  run_seq      INTEGER NOT NULL REFERENCES train_run (seq),
  item_id      BLOB    NOT NULL CHECK (length(item_id) = 16),
  kind         INTEGER NOT NULL CHECK (kind IN (0, 1, 2)),     -- 0 feedback, 1 preference, 2 completion
  lane         TEXT    NOT NULL,
  reward       REAL    CHECK (abs(reward) < 1e308),
  weight       REAL    NOT NULL CHECK (abs(weight) < 1e308),
  age_versions INTEGER NOT NULL CHECK (age_versions >= 0),
  drop_reason  TEXT    CHECK (drop_reason <> ''),
  PRIMARY KEY (run_seq, item_id)
) STRICT, WITHOUT ROWID;

-- Samples over all runs; reason '' counts those that were used.
CREATE TABLE lane_total (
  lane    TEXT    NOT NULL,
  reason  TEXT    NOT NULL,
  samples INTEGER NOT NULL,
  PRIMARY KEY (lane, reason)
) STRICT, WITHOUT ROWID;

-- Effective ratings and preferences that no run has consumed: what an anti-join of all of them with train_sample would
-- find, kept up to date by the triggers below so that it can be read every second however long the log is. A row is in
-- it from the transaction that adds the item to the one that consumes it, in whatever order those commit.
CREATE TABLE unused_feedback (
  seq          INTEGER PRIMARY KEY REFERENCES feedback (seq) ON DELETE CASCADE,
  subject_hash BLOB
) STRICT;

CREATE TABLE unused_preference (
  seq          INTEGER PRIMARY KEY REFERENCES preference (seq) ON DELETE CASCADE,
  subject_hash BLOB
) STRICT;

CREATE INDEX unused_feedback_subject ON unused_feedback (subject_hash);
CREATE INDEX unused_preference_subject ON unused_preference (subject_hash);

INSERT INTO unused_feedback (seq, subject_hash)
SELECT seq, subject_hash FROM feedback f
WHERE kind <> 3 AND NOT EXISTS (SELECT 1 FROM feedback s WHERE s.supersedes = f.id);

CREATE TRIGGER feedback_unused AFTER INSERT ON feedback
BEGIN
  DELETE FROM unused_feedback WHERE seq = (SELECT seq FROM feedback WHERE id = NEW.supersedes);
  INSERT INTO unused_feedback (seq, subject_hash) SELECT NEW.seq, NEW.subject_hash WHERE NEW.kind <> 3;
END;

-- A subject that ranks the same completions again has changed its mind.
CREATE TRIGGER preference_unused AFTER INSERT ON preference
BEGIN
  DELETE FROM unused_preference WHERE seq IN (
    SELECT seq FROM preference WHERE set_sha256 = NEW.set_sha256 AND subject_hash IS NEW.subject_hash
  );
  INSERT INTO unused_preference (seq, subject_hash) VALUES (NEW.seq, NEW.subject_hash);
END;

CREATE TRIGGER train_sample_consumes AFTER INSERT ON train_sample
BEGIN
  DELETE FROM unused_feedback
  WHERE NEW.kind = 0 AND seq = (SELECT seq FROM feedback WHERE id = NEW.item_id);
  DELETE FROM unused_preference
  WHERE NEW.kind = 1 AND seq = (SELECT seq FROM preference WHERE id = NEW.item_id);
  INSERT INTO lane_total (lane, reason, samples) VALUES (NEW.lane, ifnull(NEW.drop_reason, ''), 1)
  ON CONFLICT (lane, reason) DO UPDATE SET samples = samples + 1;
END;

-- Immutable versions; only status and gate change.
CREATE TABLE adapter (
  seq         INTEGER PRIMARY KEY,
  id          TEXT    NOT NULL UNIQUE,                         -- name@version
  parent      TEXT,
  base_sha256 TEXT    NOT NULL,
  run_id      BLOB    CHECK (length(run_id) = 16),
  status      TEXT    NOT NULL,
  sha256      TEXT    NOT NULL,
  bytes       INTEGER NOT NULL CHECK (bytes >= 0),
  rank        INTEGER NOT NULL CHECK (rank >= 0),
  manifest    TEXT    NOT NULL CHECK (json_valid(manifest)),
  gate        TEXT    NOT NULL CHECK (json_valid(gate)),
  created_us  INTEGER NOT NULL
) STRICT;

-- Which adapters a channel serves; changed by compare-and-swap on generation.
CREATE TABLE route (
  channel    TEXT    PRIMARY KEY,
  generation INTEGER NOT NULL CHECK (generation > 0),
  spec       TEXT    NOT NULL CHECK (json_valid(spec)),
  actor      TEXT    NOT NULL,
  updated_us INTEGER NOT NULL
) STRICT;

-- Who changed adapters and routes. Each row's hash covers the one before it.
CREATE TABLE audit (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT,
  at_us       INTEGER NOT NULL,
  actor       TEXT    NOT NULL,
  action      TEXT    NOT NULL,
  object      TEXT    NOT NULL,
  detail      TEXT    NOT NULL CHECK (json_valid(detail)),
  prev_sha256 BLOB    NOT NULL CHECK (length(prev_sha256) = 32),
  sha256      BLOB    NOT NULL CHECK (length(sha256) = 32)
) STRICT;

CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
BEGIN
  SELECT RAISE(ABORT, 'audit is appended only');
END;

CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
BEGIN
  SELECT RAISE(ABORT, 'audit is appended only');
END;

-- Who may train. The term grows whenever the lease changes hands, so a late write of a former holder can be told.
CREATE TABLE lease (
  name       TEXT    PRIMARY KEY,
  holder     TEXT    NOT NULL,
  term       INTEGER NOT NULL CHECK (term > 0),
  expires_us INTEGER NOT NULL
) STRICT;
