"""Real processes: ``labctl up`` in a home directory of its own, everything it starts, and a look at what is left."""

import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import requests

#: Seconds for what takes one or two on a quiet machine.
PATIENCE = 40
READY = "labctl is ready: "

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Wait until the condition holds and give its value; fail, saying what did not happen, when it takes too long."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"within {patience} s this did not happen: {what}"
        select.select([], [], [], 0.02)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def descendants(pid: int) -> dict[int, str]:
    """Give the process ids below ``pid``, with their command lines."""
    found: dict[int, str] = {}
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ").strip()
                found |= descendants(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def another_worker(home: Path, environ: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a worker beside those of the ``labctl up`` that has this home; nobody else looks after it."""
    url = (home / "database.url").read_text().strip()
    ours = {"LABCTL_HOME": str(home), "LABCTL_DATABASE_URL": url, **environ}
    with Path(f"{home}-workers.stderr").open("ab") as messages:
        return subprocess.Popen(
            [sys.executable, "-m", "labctl.cli.main", "worker"], env={**os.environ, **ours}, stderr=messages
        )


class Up:
    """One ``labctl up``."""

    def __init__(
        self,
        home: Path,
        *,
        port: int | None = None,
        user: str | None = None,
        python: str = sys.executable,
        **environ: str,
    ) -> None:
        self.home = home
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._messages = home.with_name(f"{home.name}-{self.port}-{time.monotonic_ns()}.stderr")
        self._said = ""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LABCTL_")}
        who = {} if user is None else identity(user)
        with self._messages.open("wb") as messages:
            self.process = subprocess.Popen(
                [python, "-m", "labctl.cli.main", "up"],
                env={**kept, "LABCTL_HOME": str(home), "LABCTL_PORT": str(self.port), **environ},
                stdout=subprocess.PIPE,
                stderr=messages,
                cwd="/",
                start_new_session=True,
                **who,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def messages(self) -> str:
        """What it wrote on standard error."""
        return self._messages.read_text()

    @property
    def said(self) -> str:
        """What it wrote on standard output so far."""
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], 0)[0]:
            text = os.read(self.process.stdout.fileno(), 65536).decode()
            if not text:
                break
            self._said += text
        return self._said

    def wait_until_ready(self) -> "Up":
        until(lambda: READY in self.said or self.process.poll() is not None, "labctl is ready")
        assert READY in self.said, self.messages
        return self

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def get(self, path: str, **arguments: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE, **arguments)

    def healthy(self) -> bool:
        try:
            return self.get("/_health").status_code == 204
        except requests.RequestException:
            return False

    def find(self, *words: str) -> list[int]:
        """Find its processes whose command line has all the words, the oldest first."""
        return sorted(pid for pid, line in descendants(self.pid).items() if all(word in line for word in words))

    @property
    def database(self) -> int:
        return next(pid for pid in self.find("/postgres", "-D") if _parent(pid) == self.pid)

    @property
    def master(self) -> int:
        return next(pid for pid in self.find("gunicorn") if _parent(pid) == self.pid)

    @property
    def web_processes(self) -> list[int]:
        return [pid for pid in self.find("gunicorn") if _parent(pid) == self.master]

    @property
    def worker(self) -> int:
        return next(pid for pid in self.find("labctl.cli.main", "worker") if _parent(pid) == self.pid)

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        left = descendants(self.pid)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in left:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        assert self.process.stdout is not None
        self.process.stdout.close()


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def identity(user: str) -> dict[str, Any]:
    """Say to subprocess who to be."""
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}
