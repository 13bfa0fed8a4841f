"""Operations by Ansible: one warm process beside each worker, which forks for each job (``ansible_server``).

This module talks to it, and never imports Ansible. How Ansible connects and what it is allowed to is up to the lab:
``ANSIBLE_*`` of the worker's environment and of the options, ``ansible.cfg``, the inventory.
"""

import json
import logging
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from labctl.remote.executor import Executor, ExecutorError, Failed, Misconfigured, Order, Result, Run, mistakes
from labctl.remote.states import Operation, Status

log = logging.getLogger(__name__)

SERVER = "labctl.remote.executors.ansible_server"
#: What the server says once it can take jobs, and seconds for that.
READY = b"ready"
START_PATIENCE = 60.0
#: Seconds for reading the inventory, and for the end of everything when the executor is closed.
INVENTORY_PATIENCE = 60.0
CLOSE_PATIENCE = 10.0
#: Bytes read at once, and results given at once.
AT_ONCE = 256 * 1024
MOST_RESULTS = 1000
LAST_WORDS = 2000
#: Seconds between beats, what one says, and the part of a lease after which their absence ends a run.
BEAT = 1.0
BEAT_SAYS = b"."
SILENCE = 0.8
#: The play for roles, among the playbooks.
DEPLOY = "_deploy.yml"
#: Of the environment: what is labctl's own, its database above all, is none of Ansible's business.
OWN = "LABCTL_"

Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options:
    """The setting ``executor`` less ``plugin``."""

    #: Where Ansible is run, and where ansible.cfg may be; empty: a directory of its own in labctl's home.
    workdir: str = ""
    #: The directory of ``_deploy.yml`` and ``roles``, seen from workdir.
    playbooks: Text = "playbooks"
    #: Inventories, seen from workdir; without it ``inventory`` there, or else what Ansible is configured with.
    inventory: list[Text] | None = None
    #: On how many hosts it does something at once; without it as many as there are processors.
    concurrency: Annotated[int, Field(ge=1, le=1000)] | None = None
    #: Settings of Ansible, ``ANSIBLE_...``, beside those of the worker's environment.
    environment: dict[Annotated[str, Field(pattern="^ANSIBLE_[A-Z0-9_]+$")], str] = Field(default_factory=dict)
    #: Seconds after which inventories are read again although none of their files has changed: some are programs.
    inventory_interval: Annotated[float, Field(gt=0)] = 60

    @field_validator("inventory", mode="before")
    @classmethod
    def _one_inventory(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


_OPTIONS = TypeAdapter(Options)


class AnsibleExecutor(Executor):
    """Ansible, see docs/remote.rst."""

    def __init__(self, options: Mapping[str, Any], home: Path) -> None:
        """Validate the options."""
        try:
            self._options = _OPTIONS.validate_python(dict(options))
        except ValidationError as error:
            lines = (f"{'.'.join(str(part) for part in e['loc']) or 'options'}: {e['msg']}" for e in error.errors())
            raise Misconfigured("\n".join(lines)) from error
        self._workdir = (Path(self._options.workdir) if self._options.workdir else home).absolute()
        self._playbooks = self._workdir / self._options.playbooks
        #: For the server; held while one is started.
        self._lock = threading.Lock()
        self._server: Server | None = None
        #: For the runs, which are heard of whatever is started or sent meanwhile.
        self._running = threading.Lock()
        self._runs: set[AnsibleRun] = set()
        self._beating: threading.Thread | None = None
        self._closed = False
        self._inventory = Inventory(self._options.inventory_interval)
        self._reading = threading.Lock()

    # What there is

    def check(self) -> list[str]:
        """List what is missing, and what Ansible says about the inventory."""
        if not self._workdir.is_dir():
            return [f"workdir: there is no directory {self._workdir}"]
        lines = list(self._check_playbooks())
        try:
            if not self.hosts():
                lines.append(f"inventory: there are no hosts in {', '.join(self._inventory.sources)}")
        except ExecutorError as error:
            lines.append(str(error))
        return lines

    def _check_playbooks(self) -> Iterator[str]:
        try:
            play = (self._playbooks / DEPLOY).read_text()
        except (OSError, ValueError) as error:
            yield f"playbooks: {self._playbooks / DEPLOY} cannot be read: {_reason(error)}"
        else:
            for name in ("_targets", "_role"):
                if name not in play:
                    yield f"playbooks: {self._playbooks / DEPLOY} does not use {name}"
        elsewhere = "ANSIBLE_ROLES_PATH" in self._environment() or b"roles_path" in _content(
            self._workdir / "ansible.cfg"
        )
        if not elsewhere and not (self._playbooks / "roles").is_dir():
            yield f"playbooks: there is no directory {self._playbooks / 'roles'}"

    def hosts(self) -> Mapping[str, Set[str]]:
        """Give what Ansible has read, as long as no file of the inventory changes."""
        with self._reading:
            sources = self._sources()
            if not self._inventory.is_fresh(sources):
                self._inventory.keep(sources, *self._read_inventory(sources))
            if self._inventory.error:
                raise Failed(self._inventory.error)
            return self._inventory.hosts

    def _sources(self) -> list[str] | None:
        """Give the inventories of the options, or the usual one; None: what Ansible is configured with."""
        if self._options.inventory is None:
            usual = self._workdir / "inventory"
            return [str(usual)] if usual.exists() else None
        # A list of hosts with commas is an inventory too.
        return [name if "," in name else str(self._workdir / name) for name in self._options.inventory]

    def _read_inventory(self, sources: list[str] | None) -> tuple[dict[str, frozenset[str]], list[str], str]:
        """Give the hosts, the inventories that were read, and why that did not work."""
        for source in sources or ():
            if "," not in source and not Path(source).exists():
                return {}, sources or [], f"inventory: there is no {source}"
        request = {"what": "hosts", "timeout": INVENTORY_PATIENCE}
        run = self._submit(request, sources)
        deadline = time.monotonic() + INVENTORY_PATIENCE + START_PATIENCE
        while not run.ended and time.monotonic() < deadline:
            run.read(1)
        with self._running:
            self._runs.discard(run)
        if not run.ended or run.error or run.told is None:
            run.cancel()
            return {}, sources or [], f"inventory: {run.error or 'it cannot be read'}"
        told = run.told
        if sources is None and not told["hosts"] and not any(Path(source).exists() for source in told["sources"]):
            return {}, told["sources"], f"inventory: there is no {self._workdir / 'inventory'}"
        return {name: frozenset(groups) for name, groups in told["hosts"].items()}, told["sources"], ""

    # Runs

    def begin(self, order: Order) -> Run:
        """Have the server fork."""
        if lines := mistakes(order.operation, order.arguments):
            raise Failed("; ".join(lines))
        if order.operation == Operation.DEPLOY and not (self._playbooks / DEPLOY).is_file():
            raise Misconfigured(f"playbooks: there is no {self._playbooks / DEPLOY}")
        request = {
            "what": "run",
            "operation": order.operation,
            "hosts": list(dict.fromkeys(order.hosts)),
            "arguments": dict(order.arguments),
            "timeout": order.timeout,
            "silence": order.lease * SILENCE,
            "play": str(self._playbooks / DEPLOY),
        }
        sources = self._sources()
        for source in sources or ():
            if "," not in source and not Path(source).exists():
                raise Failed(f"inventory: there is no {source}")
        return self._submit(request, sources)

    def _submit(self, request: dict[str, Any], sources: list[str] | None) -> "AnsibleRun":
        more = {"inventory": sources, "playbooks": str(self._playbooks), "forks": self._options.concurrency}
        text = json.dumps({**request, **more}).encode() + b"\n"
        with self._lock:
            if self._closed:
                raise Failed("the executor was closed")
            run = AnsibleRun(self._begin(text))
            with self._running:
                self._runs = {run, *(other for other in self._runs if not other.over)}
            if self._beating is None:
                self._beating = threading.Thread(target=self._beat, name="ansible-beat", daemon=True)
                self._beating.start()
        return run

    def _beat(self) -> None:
        """Let those who look after the runs know that this process is not stopped."""
        while not self._closed:
            for run in self._all_runs():
                run.beat()
            time.sleep(BEAT)

    def _all_runs(self) -> "tuple[AnsibleRun, ...]":
        with self._running:
            return tuple(self._runs)

    def _begin(self, text: bytes) -> socket.socket:
        """Give the channel of a new job; a server that has ended without our noticing is replaced once."""
        for _ in range(2):
            server = self._ready_server()
            with suppress(OSError):
                return server.begin(text)
            self._drop_server()
        raise Failed("Ansible's process ends as soon as it is asked for something")

    def _ready_server(self) -> "Server":
        """Give a server that runs, with the configuration as it is now; jobs of an older one go on."""
        if not self._workdir.is_dir():
            raise Misconfigured(f"workdir: there is no directory {self._workdir}")
        environment = self._environment()
        # What Ansible reads only once.
        stamp = _stamps([environment.get("ANSIBLE_CONFIG", ""), str(self._workdir / "ansible.cfg")])
        if self._server is not None and (self._server.stamp != stamp or not self._server.is_alive()):
            log.info("ansible_replaced", extra={"pid": self._server.pid, "alive": self._server.is_alive()})
            self._drop_server()
        if self._server is None:
            self._server = Server(self._workdir, environment, stamp)
            log.info("ansible_started", extra={"pid": self._server.pid, "workdir": str(self._workdir)})
        return self._server

    def _drop_server(self) -> None:
        if self._server is not None:
            self._server.let_go()
            self._server = None

    def _environment(self) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(OWN)}
        environment |= self._options.environment
        language = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG") or ""
        if "utf" not in language.lower():
            # Ansible refuses to run with another encoding.
            environment["LC_ALL"] = "C.UTF-8"
        paths = [environment.get("PATH", os.defpath), str(Path(sys.executable).parent)]
        return {**environment, "PATH": os.pathsep.join(paths)}

    def close(self) -> None:
        """Cancel all runs and end the server."""
        with self._lock:
            self._closed = True
            for run in self._all_runs():
                run.cancel()
            server, self._server = self._server, None
        if server is not None:
            server.close()


class Inventory:
    """What was read last."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._asked: tuple[list[str] | None, Any] | None = None
        self._read = 0.0
        self.hosts: dict[str, frozenset[str]] = {}
        self.sources: list[str] = []
        self.error = ""

    def is_fresh(self, sources: list[str] | None) -> bool:
        """Tell whether there is no reason to read it again."""
        young = time.monotonic() < self._read + self._interval
        return young and self._asked == (sources, _stamps(sources or self.sources))

    def keep(self, asked: list[str] | None, hosts: dict[str, frozenset[str]], sources: list[str], error: str) -> None:
        """Remember what was read just now."""
        self.hosts, self.sources, self.error = hosts, sources, error
        self._read = time.monotonic()
        self._asked = (asked, _stamps(asked or sources))


class Server:
    """The process that imports Ansible."""

    def __init__(self, workdir: Path, environment: Mapping[str, str], stamp: Any) -> None:
        """Start it, and wait until it can take jobs."""
        self.stamp = stamp
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tempfile.TemporaryFile() as words:
            with other:
                # It ends when our end of the socket is closed, in whatever way. A signal at the death of its parent
                # would not do: to the kernel that is this thread, which may well end before the process.
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-P", "-m", SERVER, str(other.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    cwd=workdir,
                    env=dict(environment),
                    pass_fds=(other.fileno(),),
                    process_group=0,
                )
            self._control.settimeout(START_PATIENCE)
            said = b""
            with suppress(OSError):
                said = self._control.recv(len(READY))
            if said != READY:
                self._process.kill()
                self._process.wait()
                self._control.close()
                raise Failed(f"Ansible cannot be started: {_last_words(words)}")

    @property
    def pid(self) -> int:
        """Give its number."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Tell whether it runs."""
        return self._process.poll() is None

    def begin(self, text: bytes) -> socket.socket:
        """Hand a request over; gives our end of its channel."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                # What fits in comes first: a job that the server cannot begin is no sign that it has ended.
                rest = text[ours.send(text) :]
                socket.send_fds(self._control, [b"job"], [theirs.fileno()])
            if rest:
                ours.settimeout(START_PATIENCE)
                ours.sendall(rest)
        except OSError:
            ours.close()
            raise
        ours.setblocking(False)
        return ours

    def let_go(self) -> None:
        """Let it end when its jobs have ended."""
        self._control.close()
        threading.Thread(target=self._process.wait, name="ansible-server", daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._control.close()
        try:
            self._process.wait(CLOSE_PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("ansible_killed", extra={"pid": self.pid})
            self._process.kill()
            self._process.wait()


class AnsibleRun(Run):
    """The worker's end of the channel of one job."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._rest = b""
        self._lines: list[bytes] = []
        self._error: str | None = None
        self._finished = False
        #: Whether there is nothing left of the job.
        self.over = False
        #: What it told beside results.
        self.told: dict[str, Any] | None = None

    def read(self, wait: float) -> list[Result]:
        """Read what has come."""
        deadline = time.monotonic() + wait
        results: list[Result] = []
        while not results and not self.over:
            while self._lines and len(results) < MOST_RESULTS:
                results += self._understand(self._lines.pop(0))
            if results:
                break
            if not self._receive(deadline - time.monotonic()):
                break
        return results

    def _receive(self, wait: float) -> bool:
        """Take what has come, after waiting for it; tell whether to go on."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(max(0.0, wait) * 1000):
            return False
        try:
            data = self._channel.recv(AT_ONCE)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += lines
        return True

    def _understand(self, line: bytes) -> list[Result]:
        try:
            message = json.loads(line)
        except ValueError:
            # Nothing, or cut short: whoever wrote it was killed.
            return []
        if "host" in message:
            return [Result(message["host"], Status(message["status"]), message["values"])]
        if "hosts" in message:
            self.told = message
        if message.get("error") is not None:
            # Who looks after the job has the last word.
            self._error = message["error"] or None
        self._finished = self._finished or "ended" in message
        return []

    def _end(self) -> None:
        with self._lock:
            self.over = True
            self._channel.close()
        if not self._finished:
            self._error = self._error or "the process that carried this out was lost"

    @property
    def ended(self) -> bool:
        """Tell whether the other end was closed."""
        return self.over

    @property
    def error(self) -> str | None:
        """Give what Ansible, or who looks after it, has told."""
        return self._error if self.over else None

    def beat(self) -> None:
        """Say that the worker is not stopped."""
        with self._lock, suppress(OSError):
            if not self.over:
                self._channel.send(BEAT_SAYS)

    def cancel(self) -> None:
        """Close our half of the channel, which ends everything on the other side."""
        with self._lock, suppress(OSError):
            if not self.over:
                self._channel.shutdown(socket.SHUT_WR)


def _stamps(paths: list[str]) -> list[Any]:
    """Tell apart states of files, and of the files in directories."""
    found: list[Any] = []
    for path in paths:
        places = [path]
        if os.path.isdir(path):
            places += [os.path.join(top, name) for top, _, names in os.walk(path) for name in names]
        for place in places:
            with suppress(OSError, ValueError):
                status = os.stat(place)
                found.append((place, status.st_mtime_ns, status.st_size, status.st_ino))
    return sorted(found)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _last_words(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read()[-LAST_WORDS:].decode("utf-8", "replace").split("\n")
    return " ".join([line.strip() for line in lines if line.strip()][-3:]) or "it said nothing"
