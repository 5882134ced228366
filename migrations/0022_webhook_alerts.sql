-- Alerts by webhook: deliveries that are about no job, to the operator's receiver and to those of keys.

-- What an alert is about: of the same key and subject each event is told once, and in order. NULL: no alert.
ALTER TABLE webhook_deliveries ADD COLUMN subject TEXT;
-- What an alert says: `data` of the message. NULL: no alert.
ALTER TABLE webhook_deliveries ADD COLUMN data TEXT CHECK (json_valid(data));

CREATE UNIQUE INDEX webhook_deliveries_by_subject ON webhook_deliveries (subject, key_id, event)
    WHERE subject IS NOT NULL;

-- The last alert whose deliveries were written: it is noted in the same transaction, so none is written twice or missed.
CREATE TABLE webhook_alerts_taken (
    -- There is one row.
    id     INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    -- Its number; 0 before the first.
    number INTEGER NOT NULL
) STRICT;

INSERT INTO webhook_alerts_taken (id, number) VALUES (1, 0);
