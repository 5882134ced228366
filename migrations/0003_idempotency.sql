-- What a client has asked for under an Idempotency-Key, so that asking again gives the same job.
CREATE TABLE idempotency_keys (
    -- The API key that asked.
    owner          TEXT NOT NULL,
    -- The word the client chose.
    word           TEXT NOT NULL CHECK (length(word) BETWEEN 1 AND 255),
    -- BLAKE3 of the body as it came.
    body_digest    BLOB NOT NULL CHECK (length(body_digest) = 32),
    job_id         TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at_ms  INTEGER NOT NULL,
    PRIMARY KEY (owner, word)
) STRICT, WITHOUT ROWID;

-- A job that is forgotten takes its row along.
CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job_id);
-- Retention.
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at_ms);
