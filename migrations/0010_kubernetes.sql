-- Namespaces of the cluster that keys can be let into. The id is what scopes name; the name is the cluster's.
CREATE TABLE kubernetes_namespaces (
    id            TEXT    PRIMARY KEY,
    name          TEXT    NOT NULL UNIQUE,
    created_at_ms INTEGER NOT NULL,
    -- What the last look at the cluster found. Open: a token for the namespace can be had and is worth something there.
    is_open       INTEGER NOT NULL DEFAULT 0 CHECK (is_open IN (0, 1)),
    -- JSON: a list of what the cluster lacks.
    missing       TEXT    NOT NULL DEFAULT '[]',
    problem       TEXT,
    checked_at_ms INTEGER
) STRICT;

-- One for each value of a key and each namespace that it has got tokens for. These tokens are bound to a Secret in the
-- cluster, which has the grant's id in its name: they die when it goes.
CREATE TABLE kubernetes_grants (
    id               TEXT    PRIMARY KEY,
    -- No foreign key: keys are another module's.
    key_id           TEXT    NOT NULL,
    key_prefix       TEXT    NOT NULL,
    namespace_id     TEXT    NOT NULL REFERENCES kubernetes_namespaces (id),
    -- The last of its tokens dies by itself then.
    tokens_end_at_ms INTEGER NOT NULL,
    UNIQUE (key_prefix, namespace_id)
) STRICT;

-- What has to go from the cluster: written with what makes it go, and kept until the cluster has confirmed it.
CREATE TABLE kubernetes_removals (
    id               INTEGER PRIMARY KEY,
    kind             TEXT    NOT NULL CHECK (kind IN ('secret', 'service_account', 'role_binding')),
    -- The object's name, and the namespace it is for: its own in the case of a role binding.
    name             TEXT    NOT NULL,
    namespace        TEXT    NOT NULL,
    -- Whose tokens die with it; none for what was there for everyone.
    key_id           TEXT,
    key_prefix       TEXT,
    since_at_ms      INTEGER NOT NULL,
    tokens_end_at_ms INTEGER,
    attempts         INTEGER NOT NULL DEFAULT 0,
    last_error       TEXT,
    UNIQUE (kind, name, namespace)
) STRICT;
