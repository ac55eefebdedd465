import contextlib
import gzip
import os
import pstats
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spool.errors import ConfigError, ProfileError
from spool.profile import (
    CPU_TYPES,
    MEMORY_TYPES,
    CpuRecorder,
    Frame,
    MemoryRecorder,
    Profile,
    Sample,
    merge,
    read,
    write,
)
from spool.profile.convert import convert, speedscope
from spool.profile.cpu import UNKNOWN, _may_pause, mend, parse
from spool.profile.pprof import decode, encode
from spool.profile.table import top, total
from tests.eventually import eventually

MAIN, WORK, HASH = Frame("main", "app.py", 9), Frame("work", "app.py", 5), Frame("hash", "lib/md5.py", 3)


def cpu(*samples: Sample, started: int = 0, duration: int = 1000) -> Profile:
    return Profile("cpu", CPU_TYPES, list(samples), 10, duration, started)


def sample(*stack: Frame, count: int = 1, thread: str = "MainThread") -> Sample:
    return Sample(stack, (count, count * 10, count * 20), {"thread": thread, "pid": "7"})


# The file


texts = st.text(max_size=8)
int64 = st.integers(-(1 << 63), (1 << 63) - 1)
frames = st.builds(Frame, texts, texts, int64)


@st.composite
def profiles(draw):
    kind = draw(st.sampled_from(["cpu", "memory"]))
    types = CPU_TYPES if kind == "cpu" else MEMORY_TYPES
    samples = st.builds(
        Sample,
        st.lists(frames, max_size=4).map(tuple),
        st.tuples(*[int64] * len(types)),
        st.dictionaries(texts, texts, max_size=2),
    )
    return Profile(kind, types, draw(st.lists(samples, max_size=5)), draw(int64), draw(int64), draw(int64))


@given(profiles())
def test_a_file_holds_the_whole_profile(profile):
    assert decode(encode(profile)) == profile


def test_a_file_that_another_program_wrote():
    # A sample type (1: cpu, in nanoseconds: 2), a sample with unpacked locations and a number for a label, a location
    # with an inlined call, functions out of order, uncompressed: as the schema allows.
    message = b"".join(
        [
            b"\x0a\x04\x08\x01\x10\x02",
            b"\x12\x0c\x08\x01\x08\x02\x10\x05\x1a\x04\x08\x05\x18\x2a",
            b"\x22\x0e\x08\x01\x22\x04\x08\x02\x10\x07\x22\x04\x08\x01\x10\x08",
            b"\x22\x08\x08\x02\x22\x04\x08\x01\x10\x09",
            b"\x2a\x06\x08\x02\x10\x04\x20\x03",
            b"\x2a\x06\x08\x01\x10\x03\x20\x03",
            b"\x32\x00\x32\x03cpu\x32\x0bnanoseconds\x32\x04main\x32\x05inner\x32\x03tid",
        ]
    )
    profile = decode(message)
    assert (profile.kind, profile.types) == ("cpu", (("cpu", "nanoseconds"),))
    outer, caller, inner = Frame("main", "main", 9), Frame("main", "main", 8), Frame("inner", "main", 7)
    assert profile.samples == [Sample((outer, caller, inner), (5,), {"tid": "42"})]
    assert decode(gzip.compress(message)) == profile


@given(profiles(), st.data())
def test_a_damaged_file_is_refused_or_read_never_anything_else(profile, data):
    plain = bytearray(gzip.decompress(encode(profile)))
    at = data.draw(st.integers(0, len(plain) - 1))
    plain[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ConfigError):
        assert isinstance(decode(bytes(plain[: data.draw(st.integers(at, len(plain)))])), Profile)


def test_files(tmp_path):
    file = tmp_path / "cpu.prof"
    write(file, cpu(sample(MAIN)))
    assert read(file) == cpu(sample(MAIN))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match=r"text: this is no pprof file"):
        read(tmp_path / "text")
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot write"):
        write(tmp_path / "none" / "cpu.prof", cpu())


# Sums


def test_merge_adds_up():
    one = cpu(sample(MAIN, WORK), sample(MAIN), started=100, duration=50)
    two = cpu(sample(MAIN, WORK, count=2), sample(MAIN, WORK, thread="other"), started=120, duration=100)
    merged = merge([one, two])
    assert merged.samples == [
        sample(MAIN, WORK, count=3),
        sample(MAIN),
        sample(MAIN, WORK, thread="other"),
    ]
    assert (merged.started, merged.duration, merged.period) == (100, 120, 10)


def test_merge_refuses_what_does_not_go_together():
    memory = Profile("memory", MEMORY_TYPES, [], 1, 0, 0)
    with pytest.raises(ConfigError, match="does not go with a memory profile"):
        merge([cpu(), memory])
    with pytest.raises(ConfigError, match="no profile"):
        merge([])


@given(st.lists(st.lists(st.sampled_from([MAIN, WORK, HASH]), max_size=5), max_size=6))
def test_no_amount_is_lost_or_counted_twice(stacks):
    profile = cpu(*[sample(*stack, count=number + 1) for number, stack in enumerate(stacks)])
    rows = top(profile)
    assert sum(row.own for row in rows) == sum(s.values[1] for s in profile.samples if s.stack)
    for row in rows:
        on = [s for s in profile.samples if any((f.function, f.file) == (row.function, row.file) for f in s.stack)]
        assert row.cumulative == sum(s.values[1] for s in on) >= row.own


def test_the_table_by_line_and_order():
    again = Frame("work", "app.py", 6)
    profile = cpu(sample(MAIN, WORK), sample(MAIN, again, count=2), sample(MAIN, again, HASH, count=4))
    assert [(row.function, row.own, row.cumulative) for row in top(profile)] == [
        ("hash", 40, 40),
        ("work", 30, 70),
        ("main", 0, 70),
    ]
    assert [row.function for row in top(profile, sort="cumulative")] == ["work", "main", "hash"]
    assert [(row.line, row.own) for row in top(profile, lines=True) if row.function == "work"] == [(6, 20), (5, 10)]
    assert total(profile, "wall") == 140
    with pytest.raises(ConfigError, match="no 'heap'; it has samples, cpu, wall"):
        top(profile, "heap")


# Other formats


def test_pstats_reads_what_was_converted(tmp_path):
    second = 10**8
    profile = cpu(sample(MAIN, WORK, count=second), sample(MAIN, WORK, HASH, count=2 * second))
    (tmp_path / "out.pstats").write_bytes(convert(profile, "pstats"))
    stats = pstats.Stats(str(tmp_path / "out.pstats")).get_stats_profile()
    found = {name: (each.tottime, each.cumtime) for name, each in stats.func_profiles.items()}
    assert found == {"main": (0, 3.0), "work": (1.0, 3.0), "hash": (2.0, 2.0)}
    callers = pstats.Stats(str(tmp_path / "out.pstats")).stats["lib/md5.py", 3, "hash"][4]  # type: ignore[attr-defined]
    assert list(callers) == [("app.py", 5, "work")]


def test_speedscope_has_each_thread_and_value():
    profile = cpu(sample(MAIN, WORK), sample(MAIN, Frame("work", "app.py", 6)), sample(HASH, thread="other"))
    document = msgspec.json.decode(speedscope(profile, "shop", "wall"))
    assert [each["name"] for each in document["profiles"][:4]] == [
        "wall, all threads",
        "wall, MainThread of process 7",
        "wall, other of process 7",
        "samples, all threads",
    ]
    whole = document["profiles"][0]
    functions = [[document["shared"]["frames"][each]["name"] for each in stack] for stack in whole["samples"]]
    assert Counter(dict(zip(map(tuple, functions), whole["weights"], strict=True))) == {
        ("main", "work"): 40,
        ("hash",): 20,
    }
    assert (whole["unit"], whole["endValue"]) == ("nanoseconds", 60)


# py-spy's words


def test_a_line_of_py_spy():
    text = "thread (12): pool; 1;run (/a b/x.py:7);<listcomp> (/a b/(y).py:1);frame without a file 3\n"
    assert list(parse(text)) == [
        (
            "thread (12): pool",
            (
                Frame(" 1", "", 0),
                Frame("run", "/a b/x.py", 7),
                Frame("<listcomp>", "/a b/(y).py", 1),
                Frame("frame without a file", "", 0),
            ),
            3,
        )
    ]


def test_callers_that_are_missing_are_those_of_the_same_function():
    run = Frame("run", "loop.py", 7)
    other = Frame("run", "loop.py", 8)
    whole = Counter({("main", (MAIN, run, WORK)): 5, ("main", (MAIN, other, WORK)): 2, ("main", (MAIN, HASH)): 1})
    cut = Counter({("main", (Frame("work", "app.py", 6), HASH)): 3, ("main", ()): 2, ("other", (WORK,)): 1})
    lost = Counter({("main", (Frame("who", "else.py", 1),)): 1})
    assert mend(whole, cut, lost) == [
        whole,
        Counter(
            {
                ("main", (MAIN, run, Frame("work", "app.py", 6), HASH)): 3,
                ("main", (UNKNOWN,)): 2,
                ("other", (WORK,)): 1,
            }
        ),
        lost,
    ]


# Recording


BUSY = """
import hashlib, threading, time
def spin():
    while True:
        sum(range(1000))
def wait():
    time.sleep(1000)
threading.Thread(target=wait, name="waiter", daemon=True).start()
print("ready", flush=True)
spin()
"""


@pytest.fixture
def busy(request):
    program = getattr(request, "param", BUSY)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_time_on_the_processor_and_time_at_all(busy):
    with CpuRecorder([busy.pid]) as recorder:
        threading.Event().wait(2.0)
        profile = recorder.stop()
    assert {each.labels["thread"] for each in profile.samples} == {"MainThread", "waiter"}
    assert {each.labels["pid"] for each in profile.samples} == {str(busy.pid)}
    assert top(profile)[0].function == "spin"
    wall = {row.function: row.own for row in top(profile, "wall")}
    # Both were there all the time, and that is how the length of a sample is found.
    assert 0.8 * profile.duration < wall["spin"] <= 1.2 * profile.duration
    assert 0.8 * profile.duration < wall["wait"] <= 1.2 * profile.duration
    on_processor = {row.function: row.own for row in top(profile, "cpu")}
    assert on_processor.get("wait", 0) < 0.1 * profile.duration
    assert total(profile, "cpu") <= 1.05 * profile.duration


CROWD = BUSY.replace("threading.Thread", "for _ in range(30): threading.Thread", 1)


def is_paused(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()


def test_who_runs_pauses_while_its_stacks_are_read(busy):
    # Without that, who is a moment later asleep was taken for one that sleeps on a processor.
    with CpuRecorder([busy.pid], 200):
        eventually(lambda: is_paused(busy.pid))
        eventually(lambda: not is_paused(busy.pid))
    eventually(lambda: not is_paused(busy.pid))
    assert busy.poll() is None


def test_a_process_that_ends_meanwhile(busy):
    with CpuRecorder([busy.pid]) as recorder:
        threading.Event().wait(0.3)
        busy.kill()
        busy.wait()
        profile = recorder.stop()
    assert top(profile)[0].function == "spin"


def test_a_stopped_process_is_not_paused(busy):
    busy.send_signal(signal.SIGSTOP)
    eventually(lambda: not _may_pause(busy.pid))  # py-spy fails where it would have to pause what is stopped
    with CpuRecorder([busy.pid]) as recorder:
        busy.send_signal(signal.SIGCONT)
        threading.Event().wait(0.3)
        assert top(recorder.stop())[0].function == "spin"
    assert _may_pause(busy.pid)


@pytest.mark.parametrize("busy", [CROWD], indirect=True)
def test_a_process_of_many_threads_is_not_paused(busy):
    assert not _may_pause(busy.pid)  # it would pause for 2 ms


def test_a_process_that_is_not_there(busy):
    busy.kill()
    busy.wait()
    with pytest.raises(ProfileError, match=f"no process to record is there: {busy.pid}"):
        CpuRecorder([busy.pid]).start()


def test_what_cannot_be_recorded(monkeypatch):
    with pytest.raises(ConfigError, match="no process to record"):
        CpuRecorder([])
    with pytest.raises(ConfigError, match="rate must be 1 to 1,000"):
        CpuRecorder([1], rate=0)
    with pytest.raises(ProfileError, match="nothing is being recorded"):
        CpuRecorder([1]).stop()
    monkeypatch.setattr("shutil.which", lambda *_args, **_named: None)
    with pytest.raises(ConfigError, match=r"pip install 'spool-queue\[profile\]'"):
        CpuRecorder([1]).start()


def test_a_process_that_may_not_be_read(tmp_path, monkeypatch):
    # What py-spy says where it may not, which the user that runs the tests cannot be counted on to see.
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\necho 'Permission Denied: Try running again with elevated permissions' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("spool.profile.cpu.find_spy", lambda: str(program))
    with pytest.raises(ProfileError, match=r"CAP_SYS_PTRACE.*ptrace_scope=0"):
        CpuRecorder([1]).start()


def hoard(kept: list[bytearray]) -> None:
    for _ in range(100):
        bytearray(100_000)
        kept.append(bytearray(10_000))


MEMORY = """
import sys
from pathlib import Path
from spool.profile import MemoryRecorder
from tests.test_profile import hoard
recorder = MemoryRecorder()
recorder.start(Path(sys.argv[1]))
kept = []
hoard(kept)
print(recorder.stop())
"""


def test_memory_by_memray(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "mem"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        # Else the object for which Python asks for another arena is charged with all of its mebibyte.
        env={**os.environ, "PYTHONMALLOC": "malloc"},
    )
    file = Path(done.stdout.strip())
    assert file == tmp_path / "mem.bin"
    profile = read(file)
    assert (profile.kind, profile.types) == ("memory", MEMORY_TYPES)
    rows = {name: top(profile, name)[0] for name, _ in MEMORY_TYPES}
    assert {row.function for row in rows.values()} == {"hoard"}
    assert 11_000_000 < rows["alloc_space"].own < 11_500_000
    assert 1_000_000 < rows["inuse_space"].own < 1_100_000
    assert rows["alloc_objects"].own >= 200
    assert rows["inuse_objects"].own >= 100
    assert {frame.function for each in profile.samples for frame in each.stack[:1]} == {"<module>"}
    write(tmp_path / "mem.prof", profile)
    assert read(tmp_path / "mem.prof") == profile


def test_memory_by_tracemalloc(tmp_path, monkeypatch):
    monkeypatch.setattr("spool.profile.memory.has_memray", lambda: False)
    recorder = MemoryRecorder()
    recorder.start(tmp_path / "mem")
    try:
        with pytest.raises(ProfileError, match="being recorded already"):
            MemoryRecorder().start(tmp_path / "other")
        kept: list[bytearray] = []
        hoard(kept)
    finally:
        file = recorder.stop()
    assert not tracemalloc.is_tracing()
    row = top(read(file), "inuse_space")[0]
    assert (row.function, row.file) == ("hoard", __file__)
    assert 1_000_000 < row.own < 1_100_000
    with pytest.raises(ProfileError, match="nothing is being recorded"):
        recorder.stop()
