-- The pictures that unfinished jobs start from. A row goes in the transaction that ends its job.
CREATE TABLE job_start_images (
    job_id  TEXT NOT NULL PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    -- PNG, in the very size that is drawn.
    picture BLOB NOT NULL
) STRICT;
