-- The first schema of the buffer's file (PRAGMA user_version 1), as it was: what migrations begin with. Never changed.

-- E1: every start of the agent, in order. `boot` tells whether stamps of that start are of the present boot.
CREATE TABLE epochs (
    ordinal INTEGER PRIMARY KEY,
    epoch   INTEGER NOT NULL UNIQUE,
    boot    TEXT    NOT NULL
);

-- E2: the epochs that assigned a seq in a lane, and how far; written with the blocks, never read from them. The row
-- ('', 0) is not of a lane: its `last` counts the transactions of this file (B2). It lives here because every commit
-- writes this page anyway.
CREATE TABLE lanes (
    lane       TEXT    NOT NULL,
    ordinal    INTEGER NOT NULL,
    last       INTEGER NOT NULL,
    prev_epoch INTEGER NOT NULL,
    prev_last  INTEGER NOT NULL,
    PRIMARY KEY (lane, ordinal)
) WITHOUT ROWID;

-- D1: what one commit brought to one lane (edge_agent/buffer/blocks.py). `head` before `body`, so that reading it does
-- not touch the overflow pages.
CREATE TABLE blocks (
    id      INTEGER PRIMARY KEY,
    lane    TEXT    NOT NULL,
    ordinal INTEGER NOT NULL,
    first   INTEGER NOT NULL,
    count   INTEGER NOT NULL,
    bytes   INTEGER NOT NULL,
    wall_ms INTEGER NOT NULL,
    crc     INTEGER NOT NULL,
    head    BLOB    NOT NULL,
    body    BLOB    NOT NULL
);
CREATE UNIQUE INDEX blocks_place ON blocks (lane, ordinal, first);

-- Blocks that failed their checksum; a receipt declares their messages. Never deleted.
CREATE TABLE damaged (
    id      INTEGER PRIMARY KEY,
    lane    TEXT    NOT NULL,
    epoch   INTEGER NOT NULL,
    first   INTEGER NOT NULL,
    count   INTEGER NOT NULL,
    crc     INTEGER NOT NULL,
    head    BLOB    NOT NULL,
    body    BLOB    NOT NULL
);

-- O3: per client, `frozen` as the server wrote it down (18 bytes an entry: packet id, fingerprint), and `low`: the
-- messages of the tail before it are proven acknowledged.
CREATE TABLE resend (
    client TEXT    PRIMARY KEY,
    low    INTEGER NOT NULL,
    frozen BLOB    NOT NULL
) WITHOUT ROWID;

-- O3: the part of a tail whose blocks are gone (or never were); entries first..first+count-1, 18 bytes each.
CREATE TABLE resend_tail (
    client  TEXT    NOT NULL,
    first   INTEGER NOT NULL,
    count   INTEGER NOT NULL,
    entries BLOB    NOT NULL,
    PRIMARY KEY (client, first)
) WITHOUT ROWID;

-- Sessions of the MQTT server (waybill.mqtt.state). `expiry`: seconds after the connection's end, 0xFFFFFFFF for never;
-- `expires_ms`: when that is, 0 while there is a connection.
CREATE TABLE sessions (
    client     TEXT    PRIMARY KEY,
    version    INTEGER NOT NULL,
    expiry     INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE subscriptions (
    client     TEXT    NOT NULL,
    filter     TEXT    NOT NULL,
    options    INTEGER NOT NULL,
    identifier INTEGER NOT NULL,
    PRIMARY KEY (client, filter)
) WITHOUT ROWID;

CREATE TABLE queue (
    client     TEXT    NOT NULL,
    n          INTEGER NOT NULL,
    qos        INTEGER NOT NULL,
    retain     INTEGER NOT NULL,
    received   INTEGER NOT NULL DEFAULT 0,
    expires_ms INTEGER NOT NULL,
    topic      BLOB    NOT NULL,
    payload    BLOB    NOT NULL,
    properties BLOB    NOT NULL,
    PRIMARY KEY (client, n)
) WITHOUT ROWID;

CREATE TABLE inbound (
    client TEXT    NOT NULL,
    pid    INTEGER NOT NULL,
    PRIMARY KEY (client, pid)
) WITHOUT ROWID;

CREATE TABLE retained (
    topic      BLOB    PRIMARY KEY,
    qos        INTEGER NOT NULL,
    payload    BLOB    NOT NULL,
    properties BLOB    NOT NULL,
    expires_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- C2: commands, open and done; an id stays until its expiry plus a margin.
CREATE TABLE outbox (
    place      INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    device     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    payload    BLOB    NOT NULL,
    expires_ms INTEGER NOT NULL,
    done       INTEGER NOT NULL DEFAULT 0
);
