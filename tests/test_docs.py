"""Every block of code in the documentation runs, in order, as one session per page.

A Python block that begins with ``# name.py`` becomes that file. A comment at the end of a line that prints says what it
prints. Shell lines run with the environment's own commands; a worker runs until the end of the page, and then has to
stop in order. What sets the project up is not run from within its own tests: that is what runs them.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.eventually import eventually

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLAIN = {"json", "text", ""}
SETS_UP = re.compile(r"pip install (['\"]?)spool-queue(\[[a-z,]+\])?\1$|sh scripts/\w+$")


class Session:
    """A folder in which the blocks of one page run, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code: list[str] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.server = ""
        scripts = str(Path(sys.executable).parent)
        self.env = os.environ | {
            "PATH": scripts + os.pathsep + os.environ["PATH"],
            "PYTHONPATH": str(folder),
            "SPOOL_URL": f"sqlite:///{folder}/spool.db",
        }

    def python(self, code: str) -> None:
        name = re.match(r"# (\w+\.py)\n", code)
        if name:
            (self.folder / name.group(1)).write_text(code)
        else:
            self.code.append(code)

    def shell(self, lines: str) -> None:
        for line in lines.replace("\\\n", " ").splitlines():
            command = line.split("  #")[0].strip()
            if SETS_UP.match(command):
                script = command.removeprefix("sh ")
                assert command.startswith("pip") or (ROOT / script).exists(), command
            elif assigned := re.fullmatch(r"export (\w+)=(.+)", command):
                self.env[assigned[1]] = self.run(["sh", "-euc", f"printf %s {assigned[2]}"]).stdout
            elif command == "spool server":
                self.serve()
            elif command.startswith("spool worker") and "--help" not in command:
                command = command.replace("http://127.0.0.1:8080", self.server)
                self.workers.append(subprocess.Popen(shlex.split(command), cwd=self.folder, env=self.env))
            elif command:
                command = command.replace("http://127.0.0.1:8080", self.server)
                done = self.run(["sh", "-euc", command])
                assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def serve(self) -> None:
        """Run a server, on a port that is free."""
        log = self.folder / "server.log"
        with log.open("w") as file:
            command = ["spool", "server", "--port", "0"]
            self.workers.append(subprocess.Popen(command, cwd=self.folder, env=self.env, stderr=file))
        self.server = eventually(lambda: re.search(r"serving (\S+)", log.read_text()))[1]

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def flush(self) -> None:
        """Run the page's Python so far as one program, and compare what it prints with its comments."""
        if not self.code:
            return
        program = "\n".join(self.code)
        self.code.clear()
        (self.folder / "page.py").write_text(program)
        done = self.run([sys.executable, "-W", "error", "page.py"])
        assert done.returncode == 0, done.stdout + done.stderr
        promised = re.findall(r"^ *print\(.*\)  # (.+)$", program, re.MULTILINE)
        printed = iter(done.stdout.splitlines())
        for line in promised:
            assert line in printed, f"{line!r} is not printed in its place:\n{done.stdout}"

    def stop(self) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        assert [worker.wait(timeout=30) for worker in self.workers] == [0] * len(self.workers)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, tmp_path):
    session = Session(tmp_path)
    try:
        for language, block in BLOCK.findall(page.read_text()):
            if language == "python":
                session.python(block)
            elif language == "sh":
                session.flush()
                session.shell(textwrap.dedent(block))
            else:
                assert language in PLAIN, f"a block of {language!r} is run by nobody"
        session.flush()
    finally:
        session.stop()


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
