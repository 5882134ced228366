-- Where the file of an upload is: in the data folder, or in the bucket as uploads/<owner>/<id>, where it is before the row says so.
ALTER TABLE uploads ADD COLUMN place TEXT NOT NULL DEFAULT 'folder' CHECK (place IN ('folder', 'bucket'));

-- Set if the upload is out of use, and its file still has to leave the bucket: when that was last tried.
ALTER TABLE uploads ADD COLUMN removed_at_ms INTEGER;
