"""The warm process of the ansible executor: it imports Ansible once and forks for each job.

It has one thread, or it could not fork. The worker sends it one end of a socket for each job. The fork that it makes
for that, the supervisor, reads the request, forks once more for Ansible itself, and looks after all the processes of
the job: Ansible gives some of them sessions of their own. It ends every one of them when the worker's end of the socket
is closed (a cancelled job, or a worker that is no more), when the time is up, and when the server has ended. Nobody has
to remember a job, so nobody can forget one.

Left alone are the masters of ssh connections, which other jobs go on to use; they end with the server.
"""

import contextlib
import fcntl
import json
import math
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from labctl import processes
from labctl.remote.executor import TELL_WITHIN

#: What the server says once it can take jobs.
READY = b"ready"
#: Seconds a job may go on after its time: for a host to tell what a command has said, and for whoever cancels it then.
GRACE = TELL_WITHIN + 2
#: Seconds in which the processes of a job may clean up before they are killed.
PATIENCE = 2.0
#: Seconds in which a supervisor has to end its job once it is told to; then the server does.
OBEY_WITHIN = 5.0
#: Seconds for which the server tries to; other jobs wait meanwhile, and some processes the kernel does not end.
TRY_FOR = 2.0
#: Bytes of a job's last words that are told.
LAST_WORDS = 2000
PREFIX = "labctl-ansible-"


class Wakeup:
    """A descriptor that is readable once one of some signals has come."""

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self.came: set[int] = set()
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        for number in numbers:
            signal.signal(number, lambda number, frame: self.came.add(number))
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Give the descriptor, for poll."""
        return self._reader

    def clear(self) -> None:
        """Be readable no more, until the next signal."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass


def wait_for(sources: Iterable[Any], seconds: float | None) -> set[int]:
    """Wait until something of the sources is readable, or has been closed at its other end."""
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000)}


def reap() -> dict[int, int]:
    """Collect the children that have ended, adopted ones too, each with its status."""
    found = {}
    with contextlib.suppress(ChildProcessError):
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            found[one[0]] = os.waitstatus_to_exitcode(one[1])
    return found


def is_master(pid: int) -> bool:
    """Tell whether a process is the master of an ssh connection, by the title that ssh gives it."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return title.startswith(b"ssh: ") and b"[mux]" in title


def end(
    pids: Callable[[], list[int]],
    patience: float = 0.0,
    *,
    longest: float = math.inf,
    collect: Callable[[], object] = reap,
) -> bool:
    """End processes until there are none, for they may start others: asked first if there is patience, then killed.

    Tells whether there are none; some may be left after the seconds of ``longest``, and those of other users are not
    waited for.
    """
    foreign: set[int] = set()
    if patience:
        foreign = processes.send_to_all(pids, signal.SIGTERM)
    deadline = time.monotonic() + patience
    looks = 0
    # Until two looks in a row find none, since what one look finds is not of one moment.
    while looks < 2:
        left = pids()
        if foreign.issuperset(left):
            looks += 1
            continue
        looks = 0
        if time.monotonic() >= deadline + longest:
            return False
        if time.monotonic() >= deadline:
            foreign = processes.send_to_all(pids, signal.SIGKILL)
        collect()
        time.sleep(0.01)
    collect()
    return not left


# The supervisor of one job


def supervise(channel: socket.socket, directory: Path, work: Callable[..., None], server: int) -> None:
    """Have a job done, and end with it or it with us."""
    os.setsid()
    wakeup = Wakeup((signal.SIGCHLD, signal.SIGTERM))
    processes.die_with_parent(signal.SIGTERM, server)
    processes.adopt_orphans()
    text = read_line(channel)
    if not text:
        return
    request = json.loads(text)
    own = os.getpid()
    child = os.fork()
    if child == 0:
        in_child(lambda: do(work, request, channel, directory, own), directory)
    deadline = time.monotonic() + request["timeout"]
    status, error = watch(channel, wakeup, child, deadline + GRACE, request.get("silence", math.inf))
    if error is not None:
        # Before the others, or it would tell of failures that are ours. It was not collected, so this is its number.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if error is not None or status:
        end(lambda: [pid for pid in processes.descendants(own) if not is_master(pid)], PATIENCE)
    if error == "out of time":
        error = f"timed out after {request['timeout']:g} s"
    elif status:
        error = f"Ansible has ended with {describe(status)}: {last_words(directory)}"
    shutil.rmtree(directory, ignore_errors=True)
    # A line of the job may have been cut short.
    with contextlib.suppress(OSError):
        channel.sendall(b"\n" + json.dumps({"ended": True, "error": error}).encode() + b"\n")
        # The server has this end, too.
        channel.shutdown(socket.SHUT_RDWR)


def watch(
    channel: socket.socket, wakeup: Wakeup, child: int, deadline: float, silence: float
) -> tuple[int, str | None]:
    """Wait for the end of a job: give its status, or why it has to end; ``""`` where nobody needs to be told.

    It has to end as well when nothing was heard of the worker for the seconds of ``silence``: others may use its hosts.
    """
    heard = time.monotonic()
    while True:
        ready = wait_for((channel, wakeup), min(deadline, heard + silence) - time.monotonic())
        wakeup.clear()
        ended = reap()
        if child in ended:
            return ended[child], None
        if channel.fileno() in ready:
            if not channel.recv(4096):
                return 0, ""
            heard = time.monotonic()
        if signal.SIGTERM in wakeup.came:
            return 0, "the process that began it has ended"
        if time.monotonic() >= deadline:
            return 0, "out of time"
        if time.monotonic() >= heard + silence:
            return 0, "nothing was heard of the worker"


def read_line(channel: socket.socket) -> bytes:
    """Read the request: everything until a line break, after which there may be beats."""
    parts = []
    while part := channel.recv(65536):
        line, end, _ = part.partition(b"\n")
        parts.append(line)
        if end:
            return b"".join(parts)
    return b""


def do(
    work: Callable[..., None], request: dict[str, Any], channel: socket.socket, directory: Path, parent: int
) -> None:
    """Do a job in a process of its own."""
    processes.die_with_parent(signal.SIGKILL, parent)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    with (directory / "words").open("wb") as words:
        os.dup2(words.fileno(), 2)
    end_forks_with_us(channel)

    def send(message: dict[str, Any]) -> None:
        # No lone surrogates and no bytes beyond ASCII: whoever reads this has no trouble with it.
        channel.sendall(json.dumps(message, default=str).encode() + b"\n")

    work(request, send, directory)


def end_forks_with_us(channel: socket.socket) -> None:
    """Let no fork of this process outlive it, nor hold the channel, whose end tells that the job has ended."""
    forking = [os.getpid()]

    def before() -> None:
        forking[0] = os.getpid()

    def after() -> None:
        channel.close()
        processes.die_with_parent(signal.SIGKILL, forking[0])

    os.register_at_fork(before=before, after_in_child=after)


def in_child(function: Callable[[], None], directory: Path) -> NoReturn:
    """Do something in a process that was just forked, which returns to nobody, and cleans up nothing of its parent."""
    status = 1
    try:
        function()
        status = 0
    except BaseException as error:
        with contextlib.suppress(OSError):
            text = " ".join(f"{type(error).__name__}: {error}".split())
            with (directory / "words").open("ab") as words:
                words.write(text.encode("utf-8", "replace"))
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def last_words(directory: Path) -> str:
    """Give the end of what a job wrote to its standard error, in one line."""
    try:
        text = (directory / "words").read_bytes()[-LAST_WORDS:].decode("utf-8", "replace")
    except OSError:
        text = ""
    return " ".join(text.split()) or "it said nothing"


def describe(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


# The server


@dataclass
class Job:
    """What the server knows of a job whose supervisor is at work."""

    directory: Path
    #: To see that the worker has closed its end.
    channel: socket.socket
    #: When the supervisor has to have ended; None: nobody has told it to.
    until: float | None = None


class Server:
    """Takes jobs until its socket is closed, and ends when they have ended."""

    def __init__(self, control: socket.socket, directory: Path, work: Callable[..., None]) -> None:
        # recv_fds ignores its flags in some versions of Python, and nobody would be looked after while it waits.
        control.setblocking(False)
        self._control = control
        self._directory = directory
        self._work = work
        self._number = 0
        #: By its supervisor, which may have ended but was not collected: its number belongs to nobody else.
        self._jobs: dict[int, Job] = {}
        #: Those whose supervisors were collected, with the status of each.
        self._ended: list[tuple[Job, int]] = []
        #: What jobs that ended well have left behind on purpose, and what cannot be ended.
        self._left: set[int] = set()
        self._wakeup = Wakeup((signal.SIGCHLD, signal.SIGTERM))

    def run(self) -> None:
        """Take jobs."""
        self._control.sendall(READY)
        is_open = True
        while is_open or self._jobs:
            self._wait(is_open)
            self._reap()
            if signal.SIGTERM in self._wakeup.came:
                is_open = False
                processes.send(self._jobs, signal.SIGTERM)
                self._expect_end(self._jobs.values())
            self._kill_the_disobedient()
            is_open = is_open and self._take()
        end(lambda: [pid for pid in processes.descendants(os.getpid()) if is_master(pid)])

    def _wait(self, is_open: bool) -> None:
        """Wait until there is something to do, and see which jobs have to end."""
        poll = select.poll()
        for source in (self._wakeup, self._control) if is_open else (self._wakeup,):
            poll.register(source, select.POLLIN)
        told = {job.channel.fileno(): job for job in self._jobs.values() if job.until is None}
        for channel in told:
            poll.register(channel, select.POLLRDHUP)
        untils = [job.until for job in self._jobs.values() if job.until is not None]
        seconds = max(0.0, min(untils) - time.monotonic()) if untils else None
        ready = poll.poll(None if seconds is None else math.ceil(seconds * 1000))
        self._wakeup.clear()
        self._expect_end(told[fd] for fd, _ in ready if fd in told)

    def _expect_end(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job.until is None:
                job.until = time.monotonic() + OBEY_WITHIN

    def _kill_the_disobedient(self) -> None:
        """Kill supervisors that were told to end and have not, as one that is stopped; their jobs end with them."""
        now = time.monotonic()
        late = [pid for pid, job in self._jobs.items() if job.until is not None and now >= job.until]
        processes.send(late, signal.SIGKILL)
        for pid in late:
            # Until the kernel has done so.
            self._jobs[pid].until = now + OBEY_WITHIN

    def _take(self) -> bool:
        """Begin the next job if there is one; tell whether there may be more."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 16, 1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data or not fds:
            return False
        channel = socket.socket(fileno=fds[0])
        self._number += 1
        directory = self._directory / f"job-{self._number}"
        server = os.getpid()
        try:
            directory.mkdir(mode=0o700)
            pid = os.fork()
        except OSError:
            # For this job alone: its worker reads that it was lost, and the others go on.
            channel.close()
            shutil.rmtree(directory, ignore_errors=True)
            return True
        if pid == 0:
            self._control.close()
            for job in self._jobs.values():
                job.channel.close()
            in_child(lambda: supervise(channel, directory, self._work, server), directory)
        self._jobs[pid] = Job(directory, channel)
        return True

    def _reap(self) -> None:
        """End what is left of jobs whose supervisors have ended before their time."""
        self._collect()
        while self._ended:
            own = set(self._own())
            # One that has ended meanwhile may have left some of these.
            self._collect()
            ended, self._ended = self._ended, []
            if any(status for _, status in ended):
                # It could not look after its job any more.
                if not end(lambda: self._own(self._left), longest=TRY_FOR, collect=self._collect):
                    self._left.update(self._own())
            else:
                self._left = own
            for job, _ in ended:
                shutil.rmtree(job.directory, ignore_errors=True)
                job.channel.close()

    def _collect(self) -> None:
        """Collect the children that have ended."""
        for pid, status in reap().items():
            self._left.discard(pid)
            if pid in self._jobs:
                self._ended.append((self._jobs.pop(pid), status))

    def _own(self, without: Iterable[int] = ()) -> list[int]:
        """Find the processes that have come to us from supervisors that ended, less some and what these have begun."""
        found = processes.descendants(os.getpid(), without={*self._jobs, *without})
        return [pid for pid in found if not is_master(pid)]


def make_directory() -> Path:
    """Make a directory for what jobs need for a while, and remove those whose server has ended without doing so.

    It is in the system's directory for such things: a path of a socket must be short.
    """
    where = Path(tempfile.gettempdir())
    for old in where.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if old.lstat().st_uid == os.getuid() and (lock := _lock(old)) is not None:
                shutil.rmtree(old, ignore_errors=True)
                os.close(lock)
    while True:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))
        # Held as long as the server, or a supervisor, is alive; somebody may have removed it before that.
        if _lock(directory) is not None and directory.exists():
            return directory


def _lock(directory: Path) -> int | None:
    """Lock a directory for as long as this process and its forks live; None: somebody else has."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def main() -> None:
    """Serve the socket that is given by its number."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    directory = make_directory()
    try:
        os.environ["ANSIBLE_LOCAL_TEMP"] = str(directory)
        # Imported here: it reads the configuration, and that names the directory.
        from labctl.remote.executors import ansible_job

        ansible_job.warm_up(directory)
        processes.adopt_orphans()
        Server(control, directory, ansible_job.carry_out).run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    # Ansible's own way to clean up would look for what is gone.
    os._exit(0)


if __name__ == "__main__":
    main()
