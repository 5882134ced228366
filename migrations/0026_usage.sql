-- What a job was charged, beside what it was charged to: so that the sums of the table below can be checked. NULL: it has
-- not ended, or ended before these columns were there.
ALTER TABLE jobs ADD COLUMN pixel_steps INTEGER;
ALTER TABLE jobs ADD COLUMN engine_microseconds INTEGER;
-- The project that its owner belonged to when it was accepted. Empty: none.
ALTER TABLE jobs ADD COLUMN project TEXT NOT NULL DEFAULT '';

-- The table of 0007, also by project and by model. A job's part is written together with its end, so it is counted once,
-- whatever breaks off in between; it stays when the job is forgotten.
CREATE TABLE work_by_day_new (
    -- The API key that asked.
    owner               TEXT    NOT NULL,
    -- Days since 1970-01-01: the one in which the job ended.
    day                 INTEGER NOT NULL,
    -- The project that the key belonged to. Empty: none.
    project             TEXT    NOT NULL,
    -- The model. Empty in rows that are older than this column.
    model               TEXT    NOT NULL,
    -- Jobs that ended, with or without an image. Rows that are older than this column have their images instead.
    jobs                INTEGER NOT NULL,
    -- Images that were finished.
    images              INTEGER NOT NULL,
    -- Pixels times denoising steps, also of images that were not finished.
    pixel_steps         INTEGER NOT NULL,
    engine_microseconds INTEGER NOT NULL,
    PRIMARY KEY (owner, day, project, model)
) STRICT, WITHOUT ROWID;

INSERT INTO work_by_day_new (owner, day, project, model, jobs, images, pixel_steps, engine_microseconds)
SELECT owner, day, '', '', images, images, pixel_steps, engine_microseconds FROM work_by_day;
DROP TABLE work_by_day;
ALTER TABLE work_by_day_new RENAME TO work_by_day;

-- Retention, and reports of all owners.
CREATE INDEX work_by_day_by_day ON work_by_day (day);
-- A project's use of a day or a month, read without its rows.
CREATE INDEX work_by_day_by_project ON work_by_day (project, day, images, pixel_steps, engine_microseconds)
    WHERE project <> '';
