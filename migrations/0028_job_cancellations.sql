-- When the cancellation of an unfinished job was asked for. A process that finds such a job at its start cancels it: the one before may
-- have ended within the job's step.
ALTER TABLE jobs ADD COLUMN cancel_requested_at_ms INTEGER;
