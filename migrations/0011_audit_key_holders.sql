-- Holders of keys do things that belong into the log, too. A check cannot be changed, so the table is made anew.
CREATE TABLE audit_log_new (
    -- Never used twice, so that a list can go on where it was left.
    id         INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    at_ms      INTEGER NOT NULL,
    actor      TEXT    NOT NULL CHECK (actor IN ('administrator', 'command_line', 'worker', 'stranger', 'key_holder')),
    session_id TEXT,
    address    TEXT,
    action     TEXT    NOT NULL,
    -- The key that it was done to or with, and its prefix at that time. No foreign key: the log outlives what it tells of.
    key_id     TEXT,
    key_prefix TEXT,
    detail     TEXT    NOT NULL CHECK (json_valid(detail))
) STRICT;

INSERT INTO audit_log_new SELECT * FROM audit_log;
-- What was given out once is not given out again, even where the last rows are gone.
UPDATE sqlite_sequence
   SET seq = (SELECT seq FROM sqlite_sequence WHERE name = 'audit_log')
 WHERE name = 'audit_log_new' AND EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'audit_log');
DROP TABLE audit_log;
ALTER TABLE audit_log_new RENAME TO audit_log;

-- Each kind of actor has a share of its own, so that none can push out what others have done.
CREATE INDEX audit_log_by_actor ON audit_log (actor, id);
