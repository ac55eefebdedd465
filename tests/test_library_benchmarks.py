"""The library benchmarks: that each of them runs, and that their figures are what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COLLECT = ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*"]

MADE_UP = """
import time

def bench_allocating(measure):
    measure.each(lambda: bytearray(100_000))

def bench_sleeping(measure):
    measure.rounds(lambda: 0.02, time.sleep, operations=10)
"""


def bench(*arguments: object) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *COLLECT, *map(str, arguments)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_benchmark_runs():
    out = bench("benchmarks/library", "--benchmark-disable")
    assert " passed" in out
    assert not any(word in out for word in ("failed", "skipped", "error"))


def test_figures_are_of_one_operation(tmp_path):
    (tmp_path / "bench_made_up.py").write_text(MADE_UP)
    file = tmp_path / "result.json"
    short = ["--benchmark-max-time=0.05", f"--benchmark-json={file}"]
    out = bench("-p", "benchmarks.library.conftest", "--rootdir", ROOT, "-c", "pyproject.toml", *short, tmp_path)
    allocating, sleeping = json.loads(file.read_bytes())["benchmarks"]
    # 100,000 bytes and the object that has them, for each call, though all were freed at once.
    assert 100_000 < allocating["extra_info"]["bytes_per_op"] < 101_000
    assert 2 <= allocating["extra_info"]["allocs_per_op"] < 2.1
    assert 0.002 <= sleeping["stats"]["min"] < 0.02
    table = out[out.index("per operation") :].splitlines()
    assert table[1].split() == ["µs/op", "ops/s", "B/op", "allocs/op"]
    name, _, _, allocated, count = table[2].split()
    assert (name, count) == ("bench_allocating", "2")
    assert 100_000 < int(allocated.replace(",", "")) < 101_000
