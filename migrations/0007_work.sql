-- What was drawn for whom by UTC day. A job's part is written together with its end, so it is counted once, whatever
-- breaks off in between; it stays when the job is forgotten.
CREATE TABLE work_by_day (
    -- The API key that asked.
    owner               TEXT    NOT NULL,
    -- Days since 1970-01-01: the one in which the job ended.
    day                 INTEGER NOT NULL,
    -- Pictures that were finished.
    images              INTEGER NOT NULL,
    -- Pixels times denoising steps, also of pictures that were not finished.
    pixel_steps         INTEGER NOT NULL,
    engine_microseconds INTEGER NOT NULL,
    PRIMARY KEY (owner, day)
) STRICT, WITHOUT ROWID;

-- Retention.
CREATE INDEX work_by_day_by_day ON work_by_day (day);
