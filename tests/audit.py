"""What may lie in Redis: every key is one of the documented layout, has a TTL or a bound, and they agree."""

import re
from collections import Counter

import redis

# From the header of _keys.lua: the keys with a TTL, and those which live as long as what they hold.
EXPIRING = re.compile(r"tasks:\w+|ends:\d+|recent|metrics|waiters")
BOUNDED = re.compile(
    r"jobs|tally|ready(:1)?|suspect|scheduled|dead|parked|parked:.+|unroutable|run:.+|leases|told|inc:.+|retiring|gone|cancel|noted|note:.+|meta|totals|ends|wake(:1)?"
)
SHARED = re.compile(r"layout|queues|docx?:.+")


def audit(client: redis.Redis) -> None:
    keys = {key.decode(): client.ttl(key) for key in client.scan_iter(count=1000)}
    queues = set()
    for key, ttl in keys.items():
        if ttl == -2:  # expired while we looked
            continue
        match = re.fullmatch(r"([^{}:]+:\{([^{}]+)\}:)(.+)", key)
        assert match, f"the key {key} belongs to nobody"
        prefix, queue, name = match.groups()
        if queue == "spool" and SHARED.fullmatch(name):
            continue
        if EXPIRING.fullmatch(name):
            assert ttl >= 0, f"the key {key} never expires"
        else:
            assert BOUNDED.fullmatch(name), f"the key {key} is not documented"
        queues.add(prefix)
    for prefix in queues:
        _audit_queue(client, prefix, set(keys))
        _audit_notes(client, prefix, {key: ttl for key, ttl in keys.items() if ttl != -2})


def _audit_queue(client: redis.Redis, prefix: str, keys: set[str]) -> None:
    def names(pattern: str) -> list[str]:
        return [key.removeprefix(prefix + pattern) for key in keys if key.startswith(prefix + pattern)]

    def members(name: str) -> list[str]:
        return [each.decode() for each in client.zrange(prefix + name, 0, -1)]

    def fields(name: str) -> list[str]:
        return [each.decode() for each in client.hkeys(prefix + name)]

    lines = ["ready", "ready:1", "suspect", "scheduled", "dead", *(f"parked:{task}" for task in names("parked:"))]
    places = Counter(id for line in lines for id in members(line))
    running = Counter(id for incarnation in names("run:") for id in fields(f"run:{incarnation}"))
    places += running
    jobs = set(fields("jobs"))
    assert set(places.values()) <= {1}, f"jobs in two places: {[id for id in places if places[id] > 1]}"
    assert set(places) == jobs, f"records without a place, or places without a record: {set(places) ^ jobs}"
    assert set(fields("tally")) <= jobs, "a tally outlived its job"
    assert set(fields("cancel")) <= jobs, "a wish outlived its job"
    parked = {each.decode() for each in client.smembers(prefix + "parked")}
    assert parked == set(names("parked:")), "the set of parked tasks is wrong"
    assert set(members("unroutable")) == {id for task in parked for id in members(f"parked:{task}")}
    leases, retiring, gone = set(members("leases")), set(fields("retiring")), set(members("gone"))
    assert set(fields("told")) == leases, "a lease of which nobody knows the length, or the other way round"
    assert set(names("inc:")) <= leases, "the row of an incarnation outlived it"
    assert set(names("run:")) <= leases | retiring, "jobs are held by nobody"
    assert retiring <= gone, "a retiring incarnation has no tombstone"
    assert not leases & gone, "a retired incarnation has a lease"


def _audit_notes(client: redis.Redis, prefix: str, keys: dict[str, int]) -> None:
    start = f"{prefix}note:"
    kept = {key.removeprefix(start) for key, ttl in keys.items() if key.startswith(start) and ttl == -1}
    noted = {each.decode() for each in client.smembers(f"{prefix}noted")}
    assert noted <= {each.decode() for each in client.hkeys(f"{prefix}jobs")}, "the set of noted jobs outlived one"
    assert kept == noted, f"notes that never expire, or are missing: {kept ^ noted}"
