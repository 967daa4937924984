-- Statements of the embedded log, by name. A record's id is topic << 48 | partition << 36 | offset.

-- name: schema
CREATE TABLE setting (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE topic (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, compact INTEGER NOT NULL);
-- next: the offset of the next record
CREATE TABLE head (topic INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (topic, partition))
  WITHOUT ROWID;
CREATE TABLE record (id INTEGER PRIMARY KEY, stamp_ms INTEGER NOT NULL, key BLOB, value BLOB, headers BLOB NOT NULL);
-- the newest record of each key of a compacted topic; value NULL: deleted
CREATE TABLE compacted (
  topic INTEGER NOT NULL, partition INTEGER NOT NULL, key BLOB NOT NULL,
  offset INTEGER NOT NULL, stamp_ms INTEGER NOT NULL, value BLOB, headers BLOB NOT NULL,
  PRIMARY KEY (topic, partition, key)
) WITHOUT ROWID;
CREATE INDEX compacted_offset ON compacted (topic, partition, offset);
-- the router's committed offset of each frames partition
CREATE TABLE routed (partition INTEGER PRIMARY KEY, offset INTEGER NOT NULL);

-- name: setting
SELECT value FROM setting WHERE name = ?;

-- name: set_setting
INSERT INTO setting (name, value) VALUES (?, ?);

-- name: keep_setting
INSERT INTO setting (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING;

-- name: topics
SELECT name, number, compact FROM topic;

-- name: heads
SELECT topic, partition, next FROM head;

-- name: add_topic
INSERT INTO topic (name, compact) VALUES (?, ?) RETURNING number;

-- name: set_head
INSERT INTO head (topic, partition, next) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET next = excluded.next;

-- name: add_record
INSERT INTO record (id, stamp_ms, key, value, headers) VALUES (?, ?, ?, ?, ?);

-- name: add_compacted
INSERT INTO compacted (topic, partition, key, offset, stamp_ms, value, headers) VALUES (?, ?, ?, ?, ?, ?, ?)
  ON CONFLICT DO UPDATE SET offset = excluded.offset, stamp_ms = excluded.stamp_ms, value = excluded.value,
  headers = excluded.headers;

-- name: set_routed
INSERT INTO routed (partition, offset) VALUES (?, ?) ON CONFLICT DO UPDATE SET offset = excluded.offset;

-- name: routed
SELECT offset FROM routed WHERE partition = ?;

-- name: all_routed
SELECT partition, offset FROM routed;

-- name: records
SELECT id, stamp_ms, key, value, headers FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT ?;

-- name: compacted
SELECT offset, stamp_ms, key, value, headers FROM compacted WHERE topic = ? AND partition = ? AND offset >= ? AND offset < ?
  ORDER BY offset LIMIT ?;

-- name: table
SELECT key, value FROM compacted WHERE topic = ? AND partition = ? AND value IS NOT NULL;

-- name: first
SELECT stamp_ms FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT 1;

-- name: last
SELECT stamp_ms FROM record WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT 1;

-- name: oldest
SELECT min(id) FROM record WHERE id >= ? AND id < ?;

-- name: prune
DELETE FROM record WHERE id IN (SELECT id FROM record WHERE id >= ? AND id < ? AND stamp_ms < ? ORDER BY id LIMIT ?);

-- name: prune_compacted
DELETE FROM compacted WHERE value IS NULL AND stamp_ms < ?;
