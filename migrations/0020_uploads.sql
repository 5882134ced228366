-- Images that keys have uploaded, for later requests. The file of one is uploads/<owner>_<id> in the data folder; it gets this
-- name before its row is committed.
CREATE TABLE uploads (
    -- The API key. No foreign key: this table's rows come and go by themselves.
    owner         TEXT    NOT NULL,
    -- SHA-256 of the file, in lower-case hexadecimal digits.
    id            TEXT    NOT NULL CHECK (length(id) = 64),
    bytes         INTEGER NOT NULL CHECK (bytes > 0),
    -- Pixels of the upright image.
    width         INTEGER NOT NULL CHECK (width > 0),
    height        INTEGER NOT NULL CHECK (height > 0),
    format        TEXT    NOT NULL CHECK (format IN ('png', 'jpeg', 'webp')),
    -- When it last arrived: its retention begins then.
    stored_at_ms  INTEGER NOT NULL,
    PRIMARY KEY (owner, id)
) STRICT, WITHOUT ROWID;

-- Retention.
CREATE INDEX uploads_by_age ON uploads (stored_at_ms);
