"""What type checkers say of programs that use Spool: tests/typing holds a right one and a wrong one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ROOT / "tests" / "typing"


def run(*command):
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


def mypy(program):
    done = run("mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty", str(program))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(rf"^\S*{program.name}:(\d+): error: (.*)", done.stdout, re.MULTILINE)
    return {int(line): message for line, message in found}


def pyright(program, tmp_path):
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT / "src")]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    shutil.copy(program, tmp_path)  # it reads what lies beside its settings
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    errors = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    return {each["range"]["start"]["line"] + 1: each["message"] for each in errors}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("program", ["right.py", "wrong.py"])
def test_type_checkers_take_the_right_calls_and_refuse_the_wrong_ones(checker, program, tmp_path):
    path = PROGRAMS / program
    lines = path.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = mypy(path) if checker == "mypy" else pyright(path, tmp_path)
    assert {line: found[line] for line in found.keys() - wrong} == {}
    assert {line: lines[line - 1] for line in wrong - found.keys()} == {}
