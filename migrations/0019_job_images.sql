-- The images of unfinished jobs. A row goes in the transaction that ends its job.
CREATE TABLE job_images (
    job_id   TEXT    NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    -- Its place among the images of the stored request.
    position INTEGER NOT NULL CHECK (position >= 0),
    -- PNG: in the size of its role, or whole where only a part of it is generated.
    image    BLOB    NOT NULL,
    PRIMARY KEY (job_id, position)
) STRICT;

INSERT INTO job_images (job_id, position, image) SELECT job_id, 0, picture FROM job_start_images;

DROP TABLE job_start_images;
