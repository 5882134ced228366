-- Lists of every owner's jobs that stand somewhere, newest first.
CREATE INDEX jobs_by_status ON jobs (status, id);
-- Pictures in the order in which they go when the disk is full.
CREATE INDEX jobs_with_pictures ON jobs (finished_at_ms, id) WHERE result_bytes > 0;
-- The secret behind links is a file of its own from now on, so that no backup has it. The old one goes.
DELETE FROM result_link_secret;
