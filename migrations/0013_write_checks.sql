-- What was last written to see that the database takes writes: see `store/write_check.rs`. It means nothing else.
CREATE TABLE write_checks (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    content  BLOB    NOT NULL
) STRICT;
