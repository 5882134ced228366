-- API keys. The value of a key is nowhere in here: `public_id` is the part that anyone may see, the rest is known only
-- by its hash.
CREATE TABLE api_keys (
    id              TEXT    NOT NULL PRIMARY KEY,
    -- The eight characters after `rgpu_`.
    public_id       TEXT    NOT NULL UNIQUE CHECK (length(public_id) = 8),
    name            TEXT    NOT NULL,
    -- argon2id of the whole value, as a PHC string.
    secret_hash     TEXT    NOT NULL,
    -- Three bytes of a fast digest of the whole value: enough to turn a wrong secret away without the work of argon2,
    -- far too little to find the right one (24 of its 190 bits).
    secret_tag      BLOB    NOT NULL CHECK (length(secret_tag) = 3),
    -- The scope as it stands on the wire.
    scope           TEXT    NOT NULL CHECK (json_valid(scope)),
    -- Goes up by one with every change of what the key is or may do; not with its use.
    version         INTEGER NOT NULL DEFAULT 1,
    created_at_ms   INTEGER NOT NULL,
    expires_at_ms   INTEGER,
    revoked_at_ms   INTEGER,
    last_used_at_ms INTEGER
) STRICT;
