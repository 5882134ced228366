-- That a share of a budget was reached. A row for each holder, month and share: so each is told once, whatever restarts.
CREATE TABLE budget_alerts (
    -- Never used twice, so that a reader can go on where it was.
    id          INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    holder_kind TEXT    NOT NULL CHECK (holder_kind IN ('key', 'project')),
    -- No foreign key: this outlives what it tells of.
    holder_id   TEXT    NOT NULL,
    -- The month, by its first day: days since 1970-01-01.
    month       INTEGER NOT NULL,
    -- In percent.
    level       INTEGER NOT NULL,
    at_ms       INTEGER NOT NULL,
    -- What is told: the holder's name, its budget, what was used.
    detail      TEXT    NOT NULL CHECK (json_valid(detail)),
    UNIQUE (holder_kind, holder_id, month, level)
) STRICT;
