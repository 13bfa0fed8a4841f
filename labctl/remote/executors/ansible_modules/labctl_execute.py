#!/usr/bin/python
"""Run a command by the host's shell, and end it with its time or with the connection that it was asked over.

Ansible's own modules leave a command that ignores SIGHUP, or has a session of its own, behind when labctl cancels them.
It runs on the lab's hosts: any Python that Ansible supports there, no more than Ansible's own module code.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import IO

from ansible.module_utils.basic import AnsibleModule

PR_SET_CHILD_SUBREAPER = 36
PROC = "/proc"
#: States of processes that have ended, and of those that do nothing: the stopped ones too.
ENDED = (b"Z", b"X")
STILL = (b"Z", b"X", b"T", b"t")
#: Bytes that are kept of each stream, half of them from its beginning.
MOST = 4 * 1024 * 1024
#: Seconds a command has between the request to end and its end.
PATIENCE = 1.0
#: Seconds between two looks at processes that are to stop.
LOOK_AGAIN = 0.002
#: The exit code of a command whose time was up, as timeout(1) has it.
TIMED_OUT = 124


class Stream:
    """What a command writes: its beginning and its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.fd = file.fileno()
        self.open = True
        self._first = b""
        self._last = b""
        self._left_out = 0
        os.set_blocking(self.fd, False)

    def read(self) -> bool:
        """Take what is there; tell whether there was something."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            self.open = False
            return False
        room = MOST // 2 - len(self._first)
        self._first += data[:room]
        self._last += data[room:] if room > 0 else data
        if len(self._last) > MOST:
            self._cut()
        return True

    def _cut(self) -> None:
        surplus = len(self._last) - MOST // 2
        if surplus > 0:
            self._left_out += surplus
            self._last = self._last[surplus:]

    def text(self) -> str:
        """Give it, with a mark where something is left out."""
        self._cut()
        mark = b"\n... %d bytes left out ...\n" % self._left_out if self._left_out else b""
        return (self._first + mark + self._last).decode("utf-8", "replace")


def adopt_orphans() -> None:
    """Keep every process of the command as a descendant; where the kernel cannot, those of its group are known."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (AttributeError, OSError):
        pass


def look(pid: int) -> tuple[bytes, int]:
    """Give the state and the parent of a process; ``X`` is one that is no more."""
    try:
        with open(f"{PROC}/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
        return state, int(parent)
    except (OSError, ValueError):
        return b"X", 0


def descendants() -> list[int]:
    """Find the processes of the command, parents before their children."""
    children: dict[int, list[int]] = {}
    try:
        entries = os.listdir(PROC)
    except OSError:
        return []
    for entry in entries:
        if entry.isdigit():
            state, parent = look(int(entry))
            if state not in ENDED:
                children.setdefault(parent, []).append(int(entry))
    found = [os.getpid()]
    # It grows meanwhile.
    for pid in found:
        found += children.pop(pid, [])
    return found[1:]


def send(pids: Iterable[int], group: int, number: int) -> set[int]:
    """Send a signal to a group and to processes; give those that are another user's and get none."""
    foreign = set()
    try:
        os.killpg(group, number)
    except OSError:
        pass
    for pid in pids:
        try:
            os.kill(pid, number)
        except PermissionError:
            foreign.add(pid)
        except OSError:
            pass
    return foreign


def send_to_all(group: int, number: int) -> set[int]:
    """Send a signal to the command's processes, so that none of them does anything more before it has it.

    A shell whose child has ended goes on with its next command, unless the signal has reached the shell as well; and a
    process that is started meanwhile would get none. So all of them are stopped first. Gives those that got no signal
    because they are another user's, as what sudo has started may be.
    """
    deadline = time.monotonic() + PATIENCE
    before: list[int] | None = None
    pids = descendants()
    running = pids
    foreign: set[int] = set()
    # Until two looks find the same, all stopped, since what one look finds is not of one moment.
    while (running or pids != before) and time.monotonic() < deadline:
        foreign |= send(running, group, signal.SIGSTOP)
        before = None if running else pids
        time.sleep(LOOK_AGAIN)
        pids = descendants()
        running = [pid for pid in pids if pid not in foreign and look(pid)[0] not in STILL]
    foreign = send(pids, group, number)
    # Children before their parents: some shells stop themselves when they find a child stopped.
    send(reversed(pids), group, signal.SIGCONT)
    return foreign


def has_ended(process: subprocess.Popen[bytes], foreign: set[int]) -> bool:
    """Tell whether nothing is left of the command but what is another user's; without /proc its group is asked."""
    if look(os.getpid())[0] not in ENDED:
        # Two looks, since what one look finds is not of one moment. The shell is not collected before the end, so that
        # its number, which is that of the group, belongs to nobody else.
        return all(foreign.issuperset(descendants()) for _ in range(2))
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except OSError:
        return True
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started: asked first, then made to."""
    foreign = send_to_all(process.pid, signal.SIGTERM)
    asked = time.monotonic()
    while time.monotonic() < asked + PATIENCE * 4 and not has_ended(process, foreign):
        if time.monotonic() > asked + PATIENCE:
            foreign = send_to_all(process.pid, signal.SIGKILL)
        time.sleep(0.02)
    process.poll()


def follow(
    process: subprocess.Popen[bytes], streams: list[Stream], wakeup: int, timeout: float, ended: list[int]
) -> str | None:
    """Read what the command writes until it ends; give why it has to end before that, else None."""
    deadline = time.monotonic() + timeout
    while process.poll() is None:
        if ended:
            return "signal"
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout"
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        # Where the result goes: nobody listens there any more once the connection is gone.
        poll.register(1, 0)
        for stream in streams:
            if stream.open:
                poll.register(stream.fd, select.POLLIN)
        ready = dict(poll.poll(min(left, 60) * 1000))
        if ready.get(1, 0) & (select.POLLERR | select.POLLHUP):
            return "connection"
        if wakeup in ready:
            os.read(wakeup, 4096)
        for stream in streams:
            if stream.fd in ready:
                stream.read()
    return None


def run(command: str, timeout: float) -> tuple[int, str, str, bool] | None:
    """Give the exit code, what it wrote, and whether it was in time; None if nobody wants to know any more."""
    ended: list[int] = []
    wakeup, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.append(1))
    adopt_orphans()
    process = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout and process.stderr
    streams = [Stream(process.stdout), Stream(process.stderr)]
    reason = follow(process, streams, wakeup, timeout, ended)
    nobody = reason in ("signal", "connection")
    if nobody:
        # First of all: we may be killed at any moment.
        forget()
    if reason:
        end(process)
    for stream in streams:
        # What it has started and left behind may hold them open, which is its right: only what is there is read.
        until = time.monotonic() + PATIENCE
        while stream.open and time.monotonic() < until and stream.read():
            pass
    if nobody:
        return None
    return TIMED_OUT if reason else process.returncode, streams[0].text(), streams[1].text(), not reason


def forget() -> None:
    """Remove the directories in which we were sent and are run, with what we were told: who would do so is gone."""
    unpacked = os.path.dirname(globals().get("_modlib_path") or "")
    if "_payload_" in os.path.basename(unpacked):
        shutil.rmtree(unpacked, ignore_errors=True)
    try:
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return
    for word in words:
        if os.path.basename(os.path.dirname(word)).startswith(b"ansible-tmp-"):
            shutil.rmtree(os.path.dirname(word), ignore_errors=True)


def main() -> None:
    """Do what Ansible asks for."""
    module = AnsibleModule(
        argument_spec={
            "command": {"type": "str", "required": True},
            "timeout": {"type": "float", "required": True},
        }
    )
    command, timeout = module.params["command"], module.params["timeout"]
    try:
        result = run(command, timeout)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"the command cannot be run: {error}")
        return
    if result is None:
        # By hand, for what Ansible says it with is gone; as a rule nobody listens.
        sys.stdout.write('{"failed": true, "msg": "the command was ended"}')
        sys.exit(1)
    code, stdout, stderr, in_time = result
    # A signal ended the shell: told as shells do.
    code = 128 - code if code < 0 else code
    values = {"rc": code, "stdout": stdout, "stderr": stderr}
    if not in_time:
        module.fail_json(msg="timed out", trouble=f"timed out after {timeout:g} s", **values)
    module.exit_json(changed=True, **values)


if __name__ == "__main__":
    main()
