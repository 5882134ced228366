-- A key's share of the device beside other keys.
ALTER TABLE api_keys ADD COLUMN priority TEXT NOT NULL DEFAULT 'normal' CHECK (priority IN ('low', 'normal', 'high'));
