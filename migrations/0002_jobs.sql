-- Jobs and what became of them. The pictures themselves are files under results/.
CREATE TABLE jobs (
    id              TEXT PRIMARY KEY NOT NULL,
    -- The API key that asked. No foreign key: this table's rows come and go by themselves.
    owner           TEXT NOT NULL,
    status          TEXT NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'canceled')),
    -- The resolved request as JSON: enough to draw the very same picture again after a crash.
    request         TEXT NOT NULL,
    output_format   TEXT NOT NULL CHECK (output_format IN ('png', 'jpeg', 'webp')),
    -- How often the engine began it; a job that keeps taking the process down is given up.
    attempts        INTEGER NOT NULL DEFAULT 0,
    error_code      TEXT,
    error_reason    TEXT,
    -- Size of the stored picture.
    result_bytes    INTEGER,
    -- Milliseconds since 1970, UTC.
    created_at_ms   INTEGER NOT NULL,
    started_at_ms   INTEGER,
    finished_at_ms  INTEGER,
    CHECK ((status IN ('queued', 'running')) = (finished_at_ms IS NULL)),
    CHECK ((status = 'failed') = (error_code IS NOT NULL)),
    CHECK ((status = 'succeeded') = (result_bytes IS NOT NULL))
) STRICT;

-- Lists: one owner's jobs, newest first (ids sort by age).
CREATE INDEX jobs_by_owner ON jobs (owner, id);
-- Recovery at start.
CREATE INDEX jobs_open ON jobs (id) WHERE status IN ('queued', 'running');
-- Retention.
CREATE INDEX jobs_by_end ON jobs (finished_at_ms) WHERE finished_at_ms IS NOT NULL;

-- The secret behind links to results, so that they survive a restart.
CREATE TABLE result_link_secret (
    only_row  INTEGER PRIMARY KEY NOT NULL CHECK (only_row = 1),
    secret    BLOB NOT NULL CHECK (length(secret) = 32)
) STRICT;
