-- The LoRAs of unfinished jobs: they cannot be removed. A row goes in the transaction that ends its job.
CREATE TABLE job_loras (
    job_id  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    lora_id TEXT NOT NULL REFERENCES loras (id),
    PRIMARY KEY (job_id, lora_id)
) STRICT, WITHOUT ROWID;

-- Whether a LoRA is in use.
CREATE INDEX job_loras_by_lora ON job_loras (lora_id);
