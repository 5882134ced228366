-- Webhooks: where the events of jobs are told, what is still to be told, and what was.

-- A key's defaults, and what its secret is made of. The secret is in no table: it follows from these bytes and from a file of
-- the data folder, so a copy of the database signs nothing.
CREATE TABLE webhook_keys (
    -- No foreign key: keys are another module's.
    key_id            TEXT    PRIMARY KEY NOT NULL,
    url               TEXT,
    -- Names of events, separated by commas.
    events            TEXT    NOT NULL,
    -- Since when the receiver says that it is gone (status 410): nothing is sent there until the URL is set again.
    gone_at_ms        INTEGER,
    secret_salt       BLOB    CHECK (length(secret_salt) = 16),
    -- Three bytes of a digest of the secret: enough to see that the file is another one.
    secret_tag        BLOB    CHECK (length(secret_tag) = 3),
    secret_made_at_ms INTEGER,
    -- The secret before the last rotation signs as well until then.
    previous_salt     BLOB    CHECK (length(previous_salt) = 16),
    previous_tag      BLOB    CHECK (length(previous_tag) = 3),
    previous_until_ms INTEGER,
    CHECK ((secret_salt IS NULL) = (secret_tag IS NULL)),
    CHECK ((previous_salt IS NULL) = (previous_until_ms IS NULL))
) STRICT;

-- The webhooks of unfinished jobs. A row goes in the transaction that ends its job, which writes the delivery.
CREATE TABLE job_webhooks (
    job_id     TEXT    PRIMARY KEY NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    key_id     TEXT    NOT NULL,
    url        TEXT    NOT NULL,
    events     TEXT    NOT NULL,
    -- The start of the URLs in what is delivered.
    origin     TEXT    NOT NULL,
    -- Whether the URL is the key's default.
    is_default INTEGER NOT NULL CHECK (is_default IN (0, 1))
) STRICT, WITHOUT ROWID;

-- What is to be delivered, and the log of what was. What a job looks like is read when it is sent: no prompt is in here.
CREATE TABLE webhook_deliveries (
    -- The order of events, never used twice.
    number         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    id             TEXT    NOT NULL UNIQUE,
    key_id         TEXT    NOT NULL,
    -- No foreign key: the log outlives the job. NULL for a test.
    job_id         TEXT,
    event          TEXT    NOT NULL,
    url            TEXT    NOT NULL,
    host           TEXT    NOT NULL,
    origin         TEXT    NOT NULL,
    is_default     INTEGER NOT NULL CHECK (is_default IN (0, 1)),
    happened_at_ms INTEGER NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('pending', 'delivered', 'failed')),
    -- All attempts, and those since it was last asked for.
    attempts       INTEGER NOT NULL DEFAULT 0,
    failures       INTEGER NOT NULL DEFAULT 0,
    next_at_ms     INTEGER,
    tried_at_ms    INTEGER,
    ended_at_ms    INTEGER,
    -- The last answer's status, and what was wrong.
    last_status    INTEGER,
    last_error     TEXT,
    CHECK ((state = 'pending') = (next_at_ms IS NOT NULL)),
    CHECK ((state = 'pending') = (ended_at_ms IS NULL))
) STRICT;

-- Each event of a job once, and what is before another of the same job.
CREATE UNIQUE INDEX webhook_deliveries_by_job ON webhook_deliveries (job_id, event) WHERE job_id IS NOT NULL;
-- What is due.
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_at_ms) WHERE state = 'pending';
-- A key's log, and what waits for it.
CREATE INDEX webhook_deliveries_by_key ON webhook_deliveries (key_id, number);
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (key_id) WHERE state = 'pending';
-- Retention.
CREATE INDEX webhook_deliveries_by_end ON webhook_deliveries (ended_at_ms) WHERE ended_at_ms IS NOT NULL;
