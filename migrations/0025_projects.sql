-- Projects: keys with limits that they share. The columns of limits are as those of a key; NULL: as much as there is.
CREATE TABLE projects (
    id                      TEXT    PRIMARY KEY NOT NULL,
    -- For people. No two projects have the same.
    name                    TEXT    NOT NULL UNIQUE,
    requests_per_minute     INTEGER CHECK (requests_per_minute > 0),
    concurrent_jobs         INTEGER CHECK (concurrent_jobs > 0),
    megapixel_steps_per_day INTEGER CHECK (megapixel_steps_per_day > 0),
    -- What may be used up in a calendar month, UTC: megapixel-steps, or millionths of the currency that prices are in.
    budget_megapixel_steps  INTEGER CHECK (budget_megapixel_steps > 0),
    budget_money_micros     INTEGER CHECK (budget_money_micros > 0),
    created_at_ms           INTEGER NOT NULL,
    CHECK (budget_megapixel_steps IS NULL OR budget_money_micros IS NULL)
) STRICT;

-- The project that a key belongs to.
ALTER TABLE api_keys ADD COLUMN project_id TEXT REFERENCES projects (id);
-- A key's own budget, as a project's.
ALTER TABLE api_keys ADD COLUMN budget_megapixel_steps INTEGER CHECK (budget_megapixel_steps > 0);
ALTER TABLE api_keys ADD COLUMN budget_money_micros INTEGER CHECK (budget_money_micros > 0);

-- Whether keys belong to a project.
CREATE INDEX api_keys_by_project ON api_keys (project_id) WHERE project_id IS NOT NULL;
