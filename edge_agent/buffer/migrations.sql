-- From one schema version to the next; edge_agent/buffer/connection.py runs each in one transaction. What is here
-- stays as it is; schema.sql is where it leads.

-- name: to_2
CREATE TABLE losses (
    epoch      INTEGER NOT NULL,
    lane       TEXT    NOT NULL,
    prev_epoch INTEGER NOT NULL,
    prev_last  INTEGER NOT NULL,
    first      INTEGER NOT NULL,
    last       INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    PRIMARY KEY (epoch, lane, first)
) WITHOUT ROWID
