-- Which object of the cluster a namespace was when the worker opened it by itself: one of the same name that was made anew
-- is another, and is not opened for the keys of before.
ALTER TABLE kubernetes_namespaces ADD COLUMN cluster_uid TEXT;
