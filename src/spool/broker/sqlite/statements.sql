-- The store of the SQLite broker: first the schema, then one named statement for each thing that is done with it.
--
-- Every statement answers with at most one row where it can (lists come as JSON, bodies as hex): each further row, and
-- each further statement, is one more time that the thread gives up the interpreter's lock and has to win it back.

PRAGMA application_id = 0x53706f6c; -- "Spol"
PRAGMA user_version = 1;

-- One row: the latest time (ms, wall clock), and the boot clock at that moment. Time never runs backwards in this file.
CREATE TABLE clock (now INTEGER NOT NULL, boot INTEGER NOT NULL, boot_id TEXT NOT NULL);
INSERT INTO clock VALUES (0, 0, '');

-- state: JSON, see QueueState (counters, sequence, clock). One row per queue ever used; written once per transaction.
CREATE TABLE queue (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL);

-- Jobs until they are done or cancelled. Small rows, since they change often; the bodies lie apart and never change.
CREATE TABLE job (
  queue INTEGER NOT NULL,
  id TEXT NOT NULL,
  state INTEGER NOT NULL,             -- 0 ready, 1 scheduled, 2 parked, 3 suspect, 4 running, 5 dead
  lane INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  place INTEGER NOT NULL,             -- priority * 2^50 + sequence, its turn; when dead the sequence of its death
  record INTEGER NOT NULL,            -- record.key
  suspect INTEGER NOT NULL DEFAULT 0, -- 1: its place is among the suspects
  at INTEGER,                         -- when due (scheduled), parked, started (running) or dead (ms, wall clock)
  holder INTEGER,                     -- running: incarnation.key
  fence INTEGER,                      -- running: the claim's sequence number
  task TEXT,                          -- parked: the task nobody knew
  wish TEXT,                          -- the reason, when somebody wants it cancelled while it runs
  tally TEXT,                         -- NULL until it was handed back once
  PRIMARY KEY (queue, id)
) WITHOUT ROWID;
CREATE INDEX ready ON job (queue, lane, place) WHERE state = 0;
CREATE INDEX scheduled ON job (queue, at) WHERE state = 1;
CREATE INDEX parked ON job (queue, task, place) WHERE state = 2;
CREATE INDEX unroutable ON job (queue, at) WHERE state = 2;
CREATE INDEX suspect ON job (queue, place) WHERE state = 3;
CREATE INDEX running ON job (queue, holder) WHERE state = 4;
CREATE INDEX dead ON job (queue, place) WHERE state = 5;
CREATE INDEX wish ON job (queue, holder) WHERE wish IS NOT NULL;

-- Bodies of jobs, by queue.id * 2^44 + sequence: in the order in which they are read. Each goes with its job.
CREATE TABLE record (key INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TRIGGER job_gone AFTER DELETE ON job BEGIN DELETE FROM record WHERE key = old.record; END;

-- Jobs that are done (6) or cancelled (7), until they expire. key: queue.id * 2^44 + number, in the order of ending.
CREATE TABLE ending (
  key INTEGER PRIMARY KEY,
  queue INTEGER NOT NULL,
  id TEXT NOT NULL,
  state INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  body BLOB NOT NULL,
  UNIQUE (queue, id)
);
CREATE INDEX expiry ON ending (expires);

-- Lives of workers. A retired one stays as its own tombstone; retiring = 1 while it still holds jobs.
CREATE TABLE incarnation (
  key INTEGER PRIMARY KEY,
  queue INTEGER NOT NULL,
  name TEXT NOT NULL,
  lease INTEGER NOT NULL,             -- how long it holds after a beat (ms)
  deadline INTEGER NOT NULL,          -- when it ends (ms, boot clock)
  tasks TEXT,                         -- JSON array of the names it can run; NULL when it did not say
  claimed INTEGER NOT NULL DEFAULT 0, -- sequence number of its last claim
  settled INTEGER NOT NULL DEFAULT 0, -- … and of its last settle
  reply TEXT,                         -- the reply to that
  retired INTEGER,                    -- when (ms, wall clock)
  retiring INTEGER NOT NULL DEFAULT 0,
  reason TEXT,
  detail TEXT,
  UNIQUE (queue, name)
);
CREATE INDEX live ON incarnation (queue, deadline) WHERE retired IS NULL;
CREATE INDEX retiring ON incarnation (queue) WHERE retiring = 1;
CREATE INDEX tombstone ON incarnation (queue, retired) WHERE retired IS NOT NULL;

-- What settles leave for observers; the last 10,000 or so of a queue. body: the time (ms) as eight bytes, and the blob.
CREATE TABLE metrics (queue INTEGER NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (queue, number))
WITHOUT ROWID;

CREATE TABLE document (
  kind TEXT NOT NULL,
  key TEXT NOT NULL,
  version INTEGER NOT NULL,
  body BLOB NOT NULL,
  expires INTEGER,                    -- NULL: never
  PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE INDEX document_expiry ON document (expires) WHERE expires IS NOT NULL;

-- What jobs noted (Note): while the job is there `expires` is NULL, then it is that of its ending. Not in the first files
-- of this layout, so they are added where they are missing.
CREATE TABLE IF NOT EXISTS note (
  queue INTEGER NOT NULL,
  id TEXT NOT NULL,
  holder INTEGER NOT NULL,            -- incarnation.key and fence of the attempt that noted last
  fence INTEGER NOT NULL,
  seen INTEGER NOT NULL,              -- how many lines that attempt wrote, and its last step
  step INTEGER NOT NULL,
  low INTEGER NOT NULL,               -- number of the first line that is kept, and of the next one
  high INTEGER NOT NULL,
  bytes INTEGER NOT NULL,             -- of the lines that are kept
  dropped INTEGER NOT NULL,
  progress BLOB NOT NULL,
  expires INTEGER,
  PRIMARY KEY (queue, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS note_expiry ON note (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS line (
  queue INTEGER NOT NULL, id TEXT NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (queue, id, number)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS note_gone AFTER DELETE ON note
BEGIN DELETE FROM line WHERE queue = old.queue AND id = old.id; END;

-- The statements follow. Bodies are cast where they are read: a column keeps whatever type it was given, and what is no
-- BLOB is damage like any other, to be found by who decodes it. Those that select `job.*` are wrapped so that they answer with one row (see Transaction.jobs).

-- name: clock
SELECT now, boot, boot_id FROM clock;

-- name: set_clock
UPDATE clock SET now = ?, boot = ?, boot_id = ?;

-- name: queue
SELECT id, state FROM queue WHERE name = ?;

-- name: add_queue
INSERT INTO queue (name, state) VALUES (?, ?) RETURNING id;

-- name: set_queue
UPDATE queue SET state = ? WHERE id = ?;

-- name: add_jobs
INSERT OR IGNORE INTO job (queue, id, state, lane, priority, place, record, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: add_records
INSERT INTO record (key, body) VALUES (?, ?);

-- name: add_endings
INSERT OR REPLACE INTO ending (key, queue, id, state, expires, body) VALUES (?, ?, ?, ?, ?, ?);

-- Moves jobs to what the rows say: a JSON array of queue, id and the columns set here. The queue is in each row so that
-- the rows are the outer loop, whatever the planner thinks.
-- name: move
UPDATE job
SET state = r.state, place = r.place, suspect = r.suspect, at = r.at, holder = r.holder, fence = r.fence, task = r.task,
    wish = r.wish, tally = r.tally
FROM (
  SELECT json_extract(value, '$[0]') AS queue, json_extract(value, '$[1]') AS id, json_extract(value, '$[2]') AS state,
         json_extract(value, '$[3]') AS place, json_extract(value, '$[4]') AS suspect, json_extract(value, '$[5]') AS at,
         json_extract(value, '$[6]') AS holder, json_extract(value, '$[7]') AS fence, json_extract(value, '$[8]') AS task,
         json_extract(value, '$[9]') AS wish, json_extract(value, '$[10]') AS tally
  FROM json_each(?)
) AS r
WHERE job.queue = r.queue AND job.id = r.id;

-- name: remove
DELETE FROM job WHERE queue = ? AND id IN (SELECT value FROM json_each(?));

-- The ids of these that are jobs already, under another record than one of ours.
-- name: taken
SELECT json_group_array(id) FROM job
WHERE queue = ? AND id IN (SELECT value FROM json_each(?)) AND record NOT BETWEEN ? AND ?;

-- name: jobs_by_id
SELECT * FROM job WHERE queue = ? AND id IN (SELECT value FROM json_each(?));

-- name: endings_by_id
SELECT id, state, CAST(body AS BLOB) FROM ending
WHERE queue = ? AND id IN (SELECT value FROM json_each(?)) AND expires > ?;

-- name: forget
DELETE FROM ending WHERE queue = ? AND id IN (SELECT value FROM json_each(?)) AND expires > ?;

-- name: ending
SELECT state, CAST(body AS BLOB) FROM ending WHERE queue = ? AND id = ? AND expires > ?;

-- Of the pairs [queue id, job id], the positions of those that are not waiting or running.
-- name: over
SELECT json_group_array(each.key) FROM json_each(?) AS each
WHERE NOT EXISTS (
  SELECT 1 FROM job
  WHERE queue = json_extract(each.value, '$[0]') AND id = json_extract(each.value, '$[1]') AND state <> 5
);

-- name: first_due
SELECT min(at) FROM job WHERE queue = ? AND state = 1;

-- name: due
SELECT * FROM job WHERE queue = ? AND state = 1 AND at <= ? ORDER BY at, id LIMIT ?;

-- name: parked_of
SELECT * FROM job WHERE queue = ? AND state = 2 AND task = ? ORDER BY place LIMIT ?;

-- name: first_parked
SELECT min(at) FROM job WHERE queue = ? AND state = 2;

-- name: parked_before
SELECT * FROM job WHERE queue = ? AND state = 2 AND at < ? ORDER BY at, id LIMIT ?;

-- name: ready_of
SELECT * FROM job WHERE queue = ? AND lane = ? AND state = 0 AND place > ? ORDER BY place LIMIT ?;

-- The first place in a priority of a lane.
-- name: first_ready
SELECT min(place) FROM job WHERE queue = ? AND lane = ? AND state = 0 AND place >= ? AND place < ?;

-- name: suspects
SELECT * FROM job WHERE queue = ? AND state = 3 AND place > ? ORDER BY place LIMIT ?;

-- name: take
UPDATE job SET state = 4, holder = ?, fence = ?, at = ? WHERE queue = ? AND lane = ? AND state = 0 AND place <= ?;

-- name: held_by
SELECT * FROM job INDEXED BY running WHERE queue = ? AND holder = ? AND state = 4 ORDER BY lane, place LIMIT ?;

-- name: claimed_by
SELECT * FROM job INDEXED BY running WHERE queue = ? AND holder = ? AND state = 4 AND fence = ? ORDER BY lane, place LIMIT -1;

-- The claims' sequence numbers under which it holds these.
-- name: fences
SELECT json_group_object(id, fence) FROM job
WHERE queue = ? AND +holder = ? AND state = 4 AND id IN (SELECT value FROM json_each(?));

-- name: holding
SELECT count(*) FROM job INDEXED BY running WHERE queue = ? AND holder = ? AND state = 4;

-- What the live ones hold.
-- name: held_live
SELECT count(*) FROM incarnation CROSS JOIN job INDEXED BY running
ON job.queue = incarnation.queue AND job.holder = incarnation.key AND job.state = 4
WHERE incarnation.queue = ? AND retired IS NULL AND deadline > ?;

-- name: wishes
SELECT json_group_object(id, wish) FROM (
  SELECT id, wish FROM job INDEXED BY wish WHERE queue = ? AND holder = ? AND state = 4 AND wish IS NOT NULL ORDER BY lane, place LIMIT -1
);

-- name: oldest_dead
SELECT * FROM job WHERE queue = ? AND state = 5 ORDER BY place LIMIT ?;

-- name: beat
INSERT INTO incarnation (queue, name, lease, deadline, tasks) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (queue, name) DO UPDATE
SET lease = excluded.lease, deadline = excluded.deadline, tasks = coalesce(excluded.tasks, tasks)
RETURNING key, tasks IS NOT NULL;

-- name: tombstones
SELECT json_group_array(name) FROM incarnation
WHERE queue = ? AND name IN (SELECT value FROM json_each(?)) AND +retired IS NOT NULL;

-- name: incarnation
SELECT key, lease, deadline, tasks, claimed, settled, reply FROM incarnation WHERE queue = ? AND name = ? AND retired IS NULL;

-- Live ones, the first lease end among the others, expired ones, and whether a retired one still holds jobs.
-- name: leases
SELECT count(*) FILTER (WHERE deadline > ?), min(deadline) FILTER (WHERE key <> ?),
       count(*) FILTER (WHERE deadline <= ?),
       EXISTS (SELECT 1 FROM incarnation WHERE queue = ? AND retiring = 1)
FROM incarnation WHERE queue = ? AND retired IS NULL;

-- name: clamp
UPDATE incarnation SET deadline = min(deadline, ?) WHERE queue = ? AND retired IS NULL;

-- name: expired
SELECT json_group_array(name) FROM (
  SELECT name FROM incarnation WHERE queue = ? AND retired IS NULL AND deadline <= ? ORDER BY deadline LIMIT ?
);

-- name: set_claimed
UPDATE incarnation SET claimed = ? WHERE key = ?;

-- name: set_settled
UPDATE incarnation SET settled = ?, reply = ? WHERE key = ?;

-- name: retire
INSERT INTO incarnation (queue, name, lease, deadline, retired, retiring, reason, detail) VALUES (?, ?, 0, 0, ?, 1, ?, ?)
ON CONFLICT (queue, name) DO UPDATE
SET retired = excluded.retired, retiring = 1, reason = excluded.reason, detail = excluded.detail, tasks = NULL, reply = NULL
WHERE retired IS NULL;

-- name: retired
SELECT key, reason, detail FROM incarnation WHERE queue = ? AND name = ?;

-- name: retiring
SELECT json_group_array(name) FROM (SELECT name FROM incarnation WHERE queue = ? AND retiring = 1 LIMIT ?);

-- name: set_handed_back
UPDATE incarnation SET retiring = 0 WHERE key = ?;

-- name: workers
SELECT count(*) FROM incarnation WHERE queue = ? AND retired IS NULL AND deadline > ?;

-- name: names
SELECT json_group_object(key, name) FROM incarnation WHERE key IN (SELECT value FROM json_each(?));

-- name: purge_tombstones
DELETE FROM incarnation WHERE key IN (
  SELECT key FROM incarnation WHERE queue = ? AND retired < ? AND retiring = 0 ORDER BY retired LIMIT 100
);

-- name: purge_endings
DELETE FROM ending WHERE key IN (SELECT key FROM ending WHERE expires <= ? ORDER BY expires LIMIT ?);

-- name: add_metrics
INSERT INTO metrics VALUES (?, ?, ?);

-- name: purge_metrics
DELETE FROM metrics WHERE queue = ? AND number <= ?;

-- name: watch
SELECT number, CAST(body AS BLOB) FROM metrics WHERE queue = ? AND number > ? ORDER BY number LIMIT ?;

-- name: find_scheduled
SELECT * FROM job WHERE queue = ? AND state = 1 AND (at, id) > (?, ?) ORDER BY at, id LIMIT ?;

-- name: find_parked
SELECT * FROM job WHERE queue = ? AND state = 2 AND (task, place) > (?, ?) ORDER BY task, place LIMIT ?;

-- name: find_dead
SELECT * FROM job WHERE queue = ? AND state = 5 AND place < ? ORDER BY place DESC LIMIT ?;

-- name: find_running
SELECT job.* FROM incarnation CROSS JOIN job INDEXED BY running
ON job.queue = incarnation.queue AND job.holder = incarnation.key AND job.state = 4
WHERE incarnation.queue = ? AND (incarnation.name, job.id) > (?, ?) ORDER BY incarnation.name, job.id LIMIT ?;

-- A page of endings, latest first, looks at no more than 1,000 of them.
-- name: find_ended
SELECT key, id, CAST(body AS BLOB) FROM (SELECT * FROM ending WHERE key > ? AND key < ? ORDER BY key DESC LIMIT 1000)
WHERE state = ? AND expires > ? LIMIT ?;

-- How many such a page looks at, and the last of them.
-- name: ended_page
SELECT count(*), min(key) FROM (SELECT key FROM ending WHERE key > ? AND key < ? ORDER BY key DESC LIMIT 1000);

-- name: queues
SELECT name, 0, x'' FROM queue WHERE name > ? ORDER BY name LIMIT ?;

-- name: documents
SELECT key, version, CAST(body AS BLOB) FROM document WHERE kind = ? AND key > ? AND (expires IS NULL OR expires > ?) ORDER BY key LIMIT ?;

-- name: document
SELECT version FROM document WHERE kind = ? AND key = ? AND (expires IS NULL OR expires > ?);

-- name: set_document
INSERT OR REPLACE INTO document (kind, key, version, body, expires) VALUES (?, ?, ?, ?, ?);

-- name: remove_document
DELETE FROM document WHERE kind = ? AND key = ?;

-- name: purge_documents
DELETE FROM document WHERE (kind, key) IN (SELECT kind, key FROM document WHERE expires <= ? ORDER BY expires LIMIT 100);

-- name: heads
SELECT json_group_array(json_array(id, holder, fence, seen, step, low, high, bytes, dropped, hex(progress))) FROM note
WHERE queue = ? AND id IN (SELECT value FROM json_each(?)) AND expires IS NULL;

-- The notes of a job that is there, or (with the time) of one that has ended.
-- name: notes
SELECT CAST(progress AS BLOB), dropped, low, high FROM note WHERE queue = ? AND id = ? AND coalesce(expires > ?, 1);

-- name: lines
SELECT CAST(body AS BLOB) FROM line WHERE queue = ? AND id = ? AND number >= ? AND number < ? ORDER BY number;

-- name: line_sizes
SELECT json_group_array(size) FROM (
  SELECT length(body) AS size FROM line WHERE queue = ? AND id = ? AND number >= ? ORDER BY number
);

-- name: add_lines
INSERT OR REPLACE INTO line (queue, id, number, body) VALUES (?, ?, ?, ?);

-- name: drop_lines
DELETE FROM line WHERE queue = ? AND id = ? AND number < ?;

-- name: set_notes
INSERT OR REPLACE INTO note (queue, id, holder, fence, seen, step, low, high, bytes, dropped, progress) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- Lets the notes of ended jobs go at a time; says of how many.
-- name: end_notes
UPDATE note SET expires = ? WHERE queue = ? AND id IN (SELECT value FROM json_each(?)) AND expires IS NULL;

-- name: remove_notes
DELETE FROM note WHERE queue = ? AND id IN (SELECT value FROM json_each(?));

-- name: purge_notes
DELETE FROM note WHERE (queue, id) IN (SELECT queue, id FROM note WHERE expires <= ? ORDER BY expires LIMIT ?);
