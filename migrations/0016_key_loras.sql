-- The LoRAs that a key may use: a JSON array of ids and names. NULL: all of them.
ALTER TABLE api_keys ADD COLUMN loras TEXT CHECK (json_valid(loras));
