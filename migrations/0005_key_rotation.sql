-- A key that was rotated has two values for a while: the new one in the old columns, the one before in these.
ALTER TABLE api_keys ADD COLUMN rotated_at_ms INTEGER;
ALTER TABLE api_keys ADD COLUMN previous_public_id TEXT CHECK (length(previous_public_id) = 8);
ALTER TABLE api_keys ADD COLUMN previous_secret_hash TEXT;
ALTER TABLE api_keys ADD COLUMN previous_secret_tag BLOB CHECK (length(previous_secret_tag) = 3);
-- From this moment on it is refused.
ALTER TABLE api_keys ADD COLUMN previous_until_ms INTEGER;

CREATE UNIQUE INDEX api_keys_by_previous ON api_keys (previous_public_id);
