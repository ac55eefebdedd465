"""Spool and other Python task queues, measured side by side on one Redis: the same work for all, in turns.

```sh
python -m benchmarks.peers
python -m benchmarks.peers --quick --only spool mayu blitzq
```

Every peer is one module of this package. It says what is peculiar to that peer: how a worker process is started, with
the settings that were best for it on the machine where they were tried, how jobs are enqueued, one by one and in bulk,
and how to see that a result is stored. It runs in an environment of its own, ``.venv-peers/NAME``, made when it is
first needed from ``requirements/NAME.txt``, which pins everything. Where a peer needs a newer Python than ours, that
environment has a newer one if the machine does; otherwise the peer is left out, by name. Spool runs in the environment
that the benchmark itself runs in, through its public interface, with an ordinary `spool worker`.

The work: a task that takes 1 KiB of text and a number, notes the time, and returns a small dict. Results are stored;
delivery is at least once where the peer has that. One Redis server for all, emptied between any two steps, without
persistence. One worker process, whatever the peer calls a worker, with as many threads or slots as suit it; uvloop
where a peer lets its user choose.

What is measured, in each round, for each peer in turn:

* **one by one**: calls per second of the peer's usual way to enqueue, each waited for, from one process;
* **in bulk**: jobs per second of its call for many, 1,000 at a time. A peer without one: 50 single calls gathered at a
  time where they are coroutines, one by one where they aren't;
* **drain**: jobs over the time from the first line of the first handler to the moment at which the last result is in
  the store. A worker is started on a full queue, so that importing and connecting do not count. The handler notes
  its start in shared memory, eight bytes for each job, without a lock or a system call; the driver looks there every
  5 ms, touches neither worker nor Redis while jobs are still to begin, and then asks every millisecond whether the
  results of the 500 that began last are there. Afterwards, with the worker gone, all results are counted, and 50 are
  read with the call that a user would make: what is missing is said in the table;
* **CPU per job**: of all processes of the worker, and of the Redis server, from the first start to the last result; and
  Redis' count of the commands meanwhile, those called by scripts included;
* **latency**: a warm, idle worker and an even load; from before the call of enqueue to the first line of the handler.
  "cannot keep up" is a worker that needs twice the time of the load or more;
* **memory**: PSS over all processes of the worker, so that pages they share count once; idle after 20 jobs, and at the
  end of the drain.

Once per peer, each on a Redis server of its own: 20 jobs of 2 s on 4 slots (defaults otherwise, but for what makes
delivery at least once), SIGKILL for every process of the worker one second into the second four, a new worker at once.
Workers are started and killed one peer after the other; what comes then runs for all at once, since it needs no
processor. Counted are jobs that ended and have a result.

On a busy machine the figures say little, the ratios included: a peer with more threads gets a larger share of it.
"""
