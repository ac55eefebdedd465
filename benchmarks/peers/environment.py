"""An environment for each peer, made when it is first needed: their dependencies do not fit together, nor with ours."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HOME = ROOT / ".venv-peers"
_REQUIREMENTS = Path(__file__).parent / "requirements"
_INSTALL_SECONDS = 600


class Unavailable(Exception):
    """Why a peer can't be measured on this machine."""


def python_of(name: str) -> Path:
    """Return the Python of a peer's environment; make it if it is not there or its requirements have changed.

    ``requirements/NAME.txt`` pins everything, and its first line may say ``# Python 3.13 or newer``. A name without
    such a file runs where we do. Raises `Unavailable`.
    """
    requirements = _REQUIREMENTS / f"{name}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    wanted, place = requirements.read_text(), _HOME / name
    python, stamp = place / "bin" / "python", place / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making an environment for {name}", file=sys.stderr)
        _run(name, str(interpreter(wanted)), "-m", "venv", "--clear", "--without-pip", str(place))
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        _run(name, *pip, "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements))
        stamp.write_text(wanted)
    return python


def interpreter(requirements: str) -> Path:
    """Return a Python that is new enough for a peer: ours, one on PATH, or one of pyenv's. Raises `Unavailable`."""
    found = re.match(r"# Python (\d+)\.(\d+) or newer", requirements)
    least = (int(found[1]), int(found[2])) if found else (3, 11)
    if sys.version_info >= least:
        return Path(sys.executable)
    for candidate in _candidates(least):
        # A shim on PATH may be there for a version that is not chosen: it says so and fails.
        new_enough = f"import sys; sys.exit(sys.version_info < {least})"
        asked = subprocess.run([candidate, "-c", new_enough], capture_output=True, check=False)
        if asked.returncode == 0:
            return candidate
    raise Unavailable(f"needs Python {least[0]}.{least[1]}, which is not here")


def _candidates(least: tuple[int, int]) -> Iterator[Path]:
    minors = range(least[1], least[1] + 3)
    for minor in minors:
        if on_path := shutil.which(f"python{least[0]}.{minor}"):
            yield Path(on_path)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for minor in minors:
        yield from sorted(versions.glob(f"{least[0]}.{minor}.*/bin/python"))


def _run(name: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Unavailable(f"cannot be installed: {last[-1] if last else done.returncode}")
