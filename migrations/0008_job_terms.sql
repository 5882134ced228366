-- How urgent a job is: among its owner's jobs, and its owner beside others.
ALTER TABLE jobs ADD COLUMN priority TEXT NOT NULL DEFAULT 'normal' CHECK (priority IN ('low', 'normal', 'high'));
ALTER TABLE jobs ADD COLUMN owner_priority TEXT NOT NULL DEFAULT 'normal'
    CHECK (owner_priority IN ('low', 'normal', 'high'));
-- From this moment on, in milliseconds since 1970, UTC, nobody wants the picture any more. NULL: always.
ALTER TABLE jobs ADD COLUMN deadline_at_ms INTEGER;
