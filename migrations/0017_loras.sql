-- LoRAs. The file of one is loras/<id>.safetensors in the data folder; it gets this name before its row is committed.
CREATE TABLE loras (
    -- SHA-256 of the file, in lower-case hexadecimal digits.
    id              TEXT    PRIMARY KEY NOT NULL CHECK (length(id) = 64),
    -- For people and requests.
    name            TEXT    NOT NULL UNIQUE,
    bytes           INTEGER NOT NULL CHECK (bytes > 0),
    -- What it changes, and what its file says of itself.
    report          TEXT    NOT NULL CHECK (json_valid(report)),
    -- A small JPEG, made from the one in the file.
    thumbnail       BLOB,
    -- A kind of actor of the audit log.
    added_by        TEXT    NOT NULL,
    created_at_ms   INTEGER NOT NULL
) STRICT;
