-- Every statement of the buffer by its name; edge_agent/buffer/sql.py reads this file.

-- name: count_transaction
INSERT INTO lanes VALUES ('', 0, ?, 0, 0) ON CONFLICT DO UPDATE SET last = excluded.last

-- name: transactions
SELECT last FROM lanes WHERE lane = '' AND ordinal = 0

-- name: epochs
SELECT ordinal, epoch, boot FROM epochs ORDER BY ordinal

-- name: add_epoch
INSERT INTO epochs VALUES (?, ?, ?)

-- name: lanes
SELECT lane, ordinal, last, prev_epoch, prev_last FROM lanes WHERE lane <> '' ORDER BY lane, ordinal

-- name: set_lane
INSERT INTO lanes VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET last = excluded.last

-- name: drop_settled_lanes
-- A row serves frames of its epoch while there are blocks, and the next epoch while it is the lane's newest (E2).
DELETE FROM lanes WHERE lane <> ''
    AND NOT EXISTS (SELECT 1 FROM blocks WHERE blocks.lane = lanes.lane AND blocks.ordinal = lanes.ordinal)
    AND ordinal < (SELECT max(newer.ordinal) FROM lanes newer WHERE newer.lane = lanes.lane)

-- name: drop_unused_epochs
DELETE FROM epochs WHERE ordinal < (SELECT max(ordinal) FROM epochs)
    AND ordinal NOT IN (SELECT ordinal FROM lanes WHERE lane <> '')

-- name: add_block
INSERT INTO blocks (lane, ordinal, first, count, bytes, wall_ms, crc, head, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: salvage_block
INSERT OR IGNORE INTO blocks (lane, ordinal, first, count, bytes, wall_ms, crc, head, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: block_lasts
SELECT lane, ordinal, max(first + count - 1) FROM blocks GROUP BY lane, ordinal

-- name: oldest_blocks
SELECT id, first, count, bytes, coalesce(CAST(head AS BLOB), x'') FROM blocks
WHERE lane = ? AND ordinal = ? AND first > ? ORDER BY first LIMIT ?

-- name: losses
SELECT epoch, lane, prev_epoch, prev_last, first, last, count, bytes, reason FROM losses

-- name: set_loss
INSERT INTO losses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET last = excluded.last, count = excluded.count, bytes = excluded.bytes

-- name: forget_losses
DELETE FROM losses

-- name: block_places
SELECT lane, ordinal, first, count, bytes, wall_ms FROM blocks ORDER BY lane, ordinal, first

-- name: blocks_within
SELECT id, bytes, coalesce(CAST(head AS BLOB), x'') FROM blocks
WHERE lane = ? AND ordinal = ? AND first BETWEEN ? AND ? AND first + count - 1 <= ?

-- name: last_block_before
SELECT first FROM blocks WHERE lane = ? AND ordinal = ? AND first <= ? ORDER BY first DESC LIMIT 1

-- name: next_block
SELECT first FROM blocks WHERE lane = ? AND ordinal = ? AND first > ? ORDER BY first LIMIT 1

-- name: blocks_from
-- As blobs: one changed bit in a row's header makes a text of one, which cannot be read as such.
SELECT id, first, count, bytes, crc, CAST(head AS BLOB), CAST(body AS BLOB) FROM blocks
WHERE lane = ? AND ordinal = ? AND first >= ? ORDER BY first

-- name: oldest_wall_ms
SELECT wall_ms FROM blocks WHERE lane = ? ORDER BY ordinal, first LIMIT 1

-- name: block_body
SELECT coalesce(CAST(body AS BLOB), x'') FROM blocks WHERE id = ?

-- name: delete_block
DELETE FROM blocks WHERE id = ?

-- name: set_aside
INSERT INTO damaged (lane, epoch, first, count, crc, head, body)
SELECT lane, ?, first, coalesce(count, 0), coalesce(crc, 0), coalesce(head, x''), coalesce(body, x'') FROM blocks
WHERE lane = ? AND ordinal = ? AND first = ?

-- name: delete_place
DELETE FROM blocks WHERE lane = ? AND ordinal = ? AND first = ?

-- name: heads_of_epoch
SELECT id, coalesce(CAST(head AS BLOB), x'') FROM blocks WHERE ordinal = ? ORDER BY id DESC

-- name: block
SELECT lane, first, count, crc, CAST(head AS BLOB), CAST(body AS BLOB) FROM blocks WHERE id = ?

-- name: resend
SELECT client, low, frozen FROM resend

-- name: set_resend
INSERT INTO resend VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET low = excluded.low, frozen = excluded.frozen

-- name: set_low
INSERT INTO resend VALUES (?, ?, x'') ON CONFLICT DO UPDATE SET low = excluded.low

-- name: forget_resend
DELETE FROM resend WHERE client = ?

-- name: forget_all_resend
DELETE FROM resend

-- name: resend_tail
SELECT client, first, count, entries FROM resend_tail ORDER BY client, first

-- name: add_tail
INSERT INTO resend_tail VALUES (?, ?, ?, ?)

-- name: trim_tail
DELETE FROM resend_tail WHERE client = ? AND first + count <= ?

-- name: forget_all_tails
DELETE FROM resend_tail

-- name: sessions
SELECT client, version, expiry, expires_ms FROM sessions

-- name: subscriptions
SELECT client, filter, options, identifier FROM subscriptions

-- name: queue
SELECT client, n, qos, retain, topic, payload, properties, received, expires_ms FROM queue ORDER BY client, n

-- name: inbound
SELECT client, pid FROM inbound ORDER BY client, pid

-- name: retained
SELECT topic, qos, payload, properties, expires_ms FROM retained

-- name: open_session
INSERT INTO sessions VALUES (?, ?, ?, 0)
ON CONFLICT DO UPDATE SET version = excluded.version, expiry = excluded.expiry, expires_ms = 0

-- name: leave_session
UPDATE sessions SET expiry = ?, expires_ms = ? WHERE client = ?

-- name: delete_session
DELETE FROM sessions WHERE client = ?

-- name: delete_subscriptions
DELETE FROM subscriptions WHERE client = ?

-- name: delete_queue
DELETE FROM queue WHERE client = ?

-- name: delete_inbound
DELETE FROM inbound WHERE client = ?

-- name: subscribe
INSERT INTO subscriptions VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET options = excluded.options, identifier = excluded.identifier

-- name: unsubscribe
DELETE FROM subscriptions WHERE client = ? AND filter = ?

-- name: enqueue
INSERT OR REPLACE INTO queue (client, n, qos, retain, topic, payload, properties, expires_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: received
UPDATE queue SET received = 1 WHERE client = ? AND n = ?

-- name: dequeue
DELETE FROM queue WHERE client = ? AND n = ?

-- name: hold_inbound
INSERT INTO inbound VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: release_inbound
DELETE FROM inbound WHERE client = ? AND pid = ?

-- name: retain
INSERT INTO retained VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET qos = excluded.qos, payload = excluded.payload, properties = excluded.properties,
    expires_ms = excluded.expires_ms

-- name: clear_retained
DELETE FROM retained WHERE topic = ?

-- name: command
SELECT device, done FROM outbox WHERE id = ?

-- name: commands
SELECT count(*) FROM outbox

-- name: add_command
INSERT INTO outbox (id, device, name, payload, expires_ms) VALUES (?, ?, ?, ?, ?)

-- name: command_done
UPDATE outbox SET done = 1, payload = x'' WHERE id = ?

-- name: open_commands
SELECT id, device, name, payload, expires_ms FROM outbox WHERE done = 0 AND expires_ms > ? ORDER BY place

-- name: old_commands
SELECT 1 FROM outbox WHERE expires_ms <= ? LIMIT 1

-- name: forget_commands
DELETE FROM outbox WHERE expires_ms <= ?

-- name: block_ids
SELECT id, lane, ordinal, first, count FROM blocks

-- name: ensure_epoch
INSERT INTO epochs VALUES (?, ?, ?) ON CONFLICT DO NOTHING

-- name: prove_epoch
INSERT OR IGNORE INTO epochs VALUES (?, ?, '') ON CONFLICT (ordinal) DO UPDATE SET epoch = excluded.epoch
