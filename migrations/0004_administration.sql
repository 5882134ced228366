-- Who may manage the worker, and what was done.

-- The administrator's password. Without this row there is no management over HTTP.
CREATE TABLE admin_password (
    only_row      INTEGER PRIMARY KEY NOT NULL CHECK (only_row = 1),
    -- argon2id, as a PHC string.
    password_hash TEXT    NOT NULL,
    set_at_ms     INTEGER NOT NULL
) STRICT;

-- Sign-ins that have not ended. The token that proves one is nowhere in here.
CREATE TABLE admin_sessions (
    -- BLAKE3 of the token, under a context of its own. The token is 256 random bits: nothing slower is needed.
    token_hash      BLOB    PRIMARY KEY NOT NULL CHECK (length(token_hash) = 32),
    -- By which the audit log names it.
    id              TEXT    NOT NULL UNIQUE,
    address         TEXT    NOT NULL,
    created_at_ms   INTEGER NOT NULL,
    last_used_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What was done to keys, password and sessions. Never holds a secret.
CREATE TABLE audit_log (
    -- Never used twice, so that a list can go on where it was left.
    id         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    at_ms      INTEGER NOT NULL,
    actor      TEXT    NOT NULL CHECK (actor IN ('administrator', 'command_line', 'worker', 'stranger')),
    session_id TEXT,
    address    TEXT,
    action     TEXT    NOT NULL,
    -- The key that it was done to, and its prefix at that time. No foreign key: the log outlives what it tells of.
    key_id     TEXT,
    key_prefix TEXT,
    detail     TEXT    NOT NULL CHECK (json_valid(detail))
) STRICT;

-- What strangers cause is kept apart, so that they cannot push out the rest.
CREATE INDEX audit_log_by_actor ON audit_log (actor, id);
