"""Profiles in the formats of other tools."""

from __future__ import annotations

import marshal
from collections import defaultdict
from itertools import pairwise
from typing import Any, Final, Literal

import msgspec

from spool.profile.model import Profile, Sample
from spool.profile.pprof import encode

Format = Literal["speedscope", "pstats", "pprof"]
SUFFIXES: Final[dict[Format, str]] = {"speedscope": ".speedscope.json", "pstats": ".pstats", "pprof": ".prof"}

_SCHEMA: Final = "https://www.speedscope.app/file-format-schema.json"
_UNITS: Final = ("nanoseconds", "bytes")

Key = tuple[str, int, str]
Counts = tuple[int, int, float, float]
"""Calls, calls that are not recursive, time of its own, cumulative time: as `pstats` has them."""


def convert(profile: Profile, to: Format, name: str = "", value: str | None = None) -> bytes:
    """Return the bytes of a file in a format.

    ``name`` is shown by speedscope. ``value``, one of the profile's types, is what speedscope opens first and all that
    pstats has; pprof keeps them all. Raises `ConfigError` for a type that the profile does not have.
    """
    if to == "pprof":
        return encode(profile)
    return speedscope(profile, name, value) if to == "speedscope" else pstats(profile, value)


def speedscope(profile: Profile, name: str = "", value: str | None = None) -> bytes:
    """Return a profile as JSON for speedscope (`_SCHEMA`): for each type one of all threads, then one for each.

    A frame there is a function: speedscope would take each line for a function of its own.
    """
    starts = _starts(profile)
    numbers = {key: number for number, key in enumerate(starts.values())}
    stacks = [
        tuple(numbers[starts[frame.function, frame.file]] for frame in sample.stack) for sample in profile.samples
    ]
    threads: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(profile.samples):
        threads[_thread(sample)].append(index)
    groups = [("all threads", list(range(len(stacks)))), *(sorted(threads.items()) if len(threads) > 1 else ())]
    first = profile.column(value)
    profiles: list[dict[str, Any]] = []
    for column in (first, *(index for index in range(len(profile.types)) if index != first)):
        for title, indexes in groups:
            weights: dict[tuple[int, ...], int] = defaultdict(int)
            for index in indexes:
                weights[stacks[index]] += profile.samples[index].values[column]
            profiles.append(_sampled(profile.types[column], title, weights))
    return msgspec.json.encode(
        {
            "$schema": _SCHEMA,
            "name": name or f"{profile.kind} profile",
            "activeProfileIndex": 0,
            "exporter": "spool",
            "shared": {"frames": [_frame(*key) for key in numbers]},
            "profiles": [each for each in profiles if each["samples"]] or profiles[:1],
        }
    )


def _sampled(shown: tuple[str, str], title: str, weights: dict[tuple[int, ...], int]) -> dict[str, Any]:
    kept = sorted((stack, amount) for stack, amount in weights.items() if amount > 0)
    name, unit = shown
    return {
        "type": "sampled",
        "name": f"{name}, {title}",
        "unit": unit if unit in _UNITS else "none",
        "startValue": 0,
        "endValue": sum(amount for _, amount in kept),
        "samples": [stack for stack, _ in kept],
        "weights": [amount for _, amount in kept],
    }


def _frame(file: str, line: int, function: str) -> dict[str, str | int]:
    found: dict[str, str | int] = {"name": function or "?"}
    if file:
        found["file"] = file
    if line:
        found["line"] = line
    return found


def _thread(sample: Sample) -> str:
    thread, pid = sample.labels.get("thread", ""), sample.labels.get("pid", "")
    return f"{thread or 'a thread'} of process {pid}" if pid else thread or "a thread"


def pstats(profile: Profile, value: str | None = None) -> bytes:
    """Return a profile as a file for `pstats`, with what it counts as seconds: a count or a byte is a second.

    Calls are the samples that a function was in: nobody counted the calls themselves.
    """
    column = profile.column(value)
    scale = 1e-9 if profile.types[column][1] == "nanoseconds" else 1.0
    starts = _starts(profile)
    calls: dict[Key, int] = defaultdict(int)
    own: dict[Key, float] = defaultdict(float)
    cumulative: dict[Key, float] = defaultdict(float)
    callers: dict[Key, dict[Key, Counts]] = defaultdict(dict)
    for sample in profile.samples:
        amount = sample.values[column] * scale
        count = sample.values[0]
        if not amount or not sample.stack:
            continue
        keys = [starts[frame.function, frame.file] for frame in sample.stack]
        own[keys[-1]] += amount
        for key in dict.fromkeys(keys):
            calls[key] += count
            cumulative[key] += amount
        for caller, callee in dict.fromkeys(pairwise(keys)):
            before = callers[callee].get(caller, (0, 0, 0.0, 0.0))
            leaf = amount if (caller, callee) == (keys[-2], keys[-1]) else 0.0
            callers[callee][caller] = (before[0] + count, before[1] + count, before[2] + leaf, before[3] + amount)
    return marshal.dumps(
        {key: (calls[key], calls[key], own[key], cumulative[key], callers[key]) for key in list(cumulative)}
    )


def _starts(profile: Profile) -> dict[tuple[str, str], Key]:
    """Return each function's key, with the first of its lines that was seen for the line where it begins."""
    first: dict[tuple[str, str], int] = {}
    for sample in profile.samples:
        for frame in sample.stack:
            key = (frame.function, frame.file)
            first[key] = min(first.get(key, frame.line), frame.line)
    return {(function, file): (file, line, function) for (function, file), line in first.items()}
