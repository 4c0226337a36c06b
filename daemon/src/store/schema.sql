-- Schema 1. In every table `body` says what the row says and `mac` vouches for
-- it; all other columns only find rows.

CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT;

CREATE TABLE keys (
    id BLOB PRIMARY KEY,
    uid INTEGER NOT NULL,
    app TEXT NOT NULL,
    public_key BLOB NOT NULL,
    generation BLOB NOT NULL,
    state INTEGER NOT NULL,
    -- What a key without claims waits for, and since when.
    wait INTEGER,
    since INTEGER,
    run INTEGER,
    connection INTEGER,
    -- Of an init key: the end of its lifetime, and when that was first seen.
    not_after INTEGER,
    expired INTEGER,
    -- Of a signature key that retires: when it ends.
    ends INTEGER,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_public ON keys (public_key, uid, app);
CREATE INDEX keys_owner ON keys (uid, app, id) WHERE state IN (1, 2);
CREATE INDEX keys_generation ON keys (generation, state);
CREATE INDEX keys_pending ON keys (state) WHERE state IN (0, 2);
CREATE INDEX keys_wait ON keys (wait, since) WHERE wait IS NOT NULL;
CREATE INDEX keys_unclaimed ON keys (uid, app) WHERE wait <= 2;
CREATE INDEX keys_connection ON keys (run, connection) WHERE connection IS NOT NULL;
CREATE INDEX keys_expiry ON keys (not_after) WHERE not_after IS NOT NULL AND expired IS NULL;
CREATE INDEX keys_expired ON keys (expired) WHERE expired IS NOT NULL;
CREATE INDEX keys_ends ON keys (ends) WHERE ends IS NOT NULL;

CREATE TABLE generations (
    id BLOB PRIMARY KEY,
    device TEXT NOT NULL,
    own INTEGER NOT NULL,
    state INTEGER NOT NULL,
    -- Is it to be destroyed?
    idle INTEGER NOT NULL,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX generations_alive ON generations (state) WHERE state != 4;
CREATE INDEX generations_idle ON generations (idle) WHERE idle = 1;
CREATE INDEX generations_shared ON generations (device) WHERE own = 0 AND state = 1;

CREATE TABLE identities (
    id BLOB PRIMARY KEY,
    uid INTEGER NOT NULL,
    app TEXT NOT NULL,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX identities_owner ON identities (uid, app);

CREATE TABLE permits (
    id BLOB PRIMARY KEY,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE guards (
    id BLOB PRIMARY KEY,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE takeovers (
    id BLOB PRIMARY KEY,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE storages (
    id INTEGER PRIMARY KEY,
    uid INTEGER NOT NULL,
    app TEXT NOT NULL,
    name_id BLOB NOT NULL UNIQUE,
    -- Of a storage that ends with its connection: since when that is gone.
    ending INTEGER,
    -- The run in which it was attached and not yet detached.
    attached_run INTEGER,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT;
CREATE INDEX storages_owner ON storages (uid, app);
CREATE INDEX storages_ending ON storages (ending) WHERE ending IS NOT NULL;
CREATE INDEX storages_attached ON storages (attached_run) WHERE attached_run IS NOT NULL;

CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    storage INTEGER NOT NULL REFERENCES storages (id) ON DELETE CASCADE,
    name_id BLOB NOT NULL,
    kind INTEGER NOT NULL,
    group_id BLOB,
    dead INTEGER NOT NULL,
    joined INTEGER NOT NULL,
    -- Of an Update record that no own leaf node holds: since when.
    unbound INTEGER,
    -- Of a group's state: when its end was begun and not told.
    ending INTEGER,
    body BLOB NOT NULL,
    mac BLOB NOT NULL,
    UNIQUE (storage, name_id)
) STRICT;
CREATE INDEX records_group ON records (storage, group_id) WHERE group_id IS NOT NULL;
CREATE INDEX records_dead ON records (storage) WHERE dead = 1;
CREATE INDEX records_joined ON records (storage) WHERE joined = 1;
CREATE INDEX records_ending ON records (storage, ending) WHERE ending IS NOT NULL;
CREATE INDEX records_unbound ON records (storage, unbound) WHERE unbound IS NOT NULL;

CREATE TABLE claims (
    id BLOB PRIMARY KEY,
    record INTEGER NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    key BLOB NOT NULL REFERENCES keys (id),
    storage INTEGER NOT NULL,
    released INTEGER,
    -- The claim since which the storage has not said what the record holds.
    unsettled INTEGER,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_unsettled ON claims (storage, unsettled) WHERE unsettled IS NOT NULL;
CREATE INDEX claims_record ON claims (record);
CREATE INDEX claims_key ON claims (key, released);
CREATE INDEX claims_released ON claims (storage) WHERE released IS NOT NULL;

CREATE TABLE own_leaves (
    id BLOB PRIMARY KEY,
    storage INTEGER NOT NULL REFERENCES storages (id) ON DELETE CASCADE,
    public_key BLOB NOT NULL,
    group_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    body BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX own_leaves_key ON own_leaves (storage, public_key);
CREATE INDEX own_leaves_group ON own_leaves (storage, group_id, number);
