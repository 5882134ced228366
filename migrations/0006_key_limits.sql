-- What a key may use up. NULL: as much as there is.
ALTER TABLE api_keys ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
ALTER TABLE api_keys ADD COLUMN concurrent_jobs INTEGER CHECK (concurrent_jobs > 0);
ALTER TABLE api_keys ADD COLUMN megapixel_steps_per_day INTEGER CHECK (megapixel_steps_per_day > 0);

-- Requests by key and UTC day, written in batches: what was counted since the last one is lost in a crash.
CREATE TABLE key_requests (
    -- No foreign key: what was used up is told of by itself.
    key_id   TEXT    NOT NULL,
    -- Days since 1970-01-01.
    day      INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (key_id, day)
) STRICT, WITHOUT ROWID;

-- Retention.
CREATE INDEX key_requests_by_day ON key_requests (day);
