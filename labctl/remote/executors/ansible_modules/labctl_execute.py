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
from typing import IO

from ansible.module_utils.basic import AnsibleModule

PR_SET_CHILD_SUBREAPER = 36
#: Bytes that are kept of each stream, half of them from its beginning.
MOST = 4 * 1024 * 1024
#: Seconds a command has between the request to end and its end.
PATIENCE = 1.0
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


def descendants() -> set[int]:
    """Find the processes of the command."""
    parents: dict[int, int] = {}
    try:
        entries = os.listdir("/proc")
    except OSError:
        return set()
    for entry in entries:
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    parents[int(entry)] = int(parent)
            except (OSError, ValueError):
                continue
    found: set[int] = set()
    known = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in known} - found
        if not more:
            return found
        found |= more
        known |= more


def send(pids: set[int], group: int, number: int) -> None:
    """Send a signal to processes and to a group."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass
    try:
        os.killpg(group, number)
    except OSError:
        pass


def end(process: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started: asked first, then made to."""
    send(descendants(), process.pid, signal.SIGTERM)
    asked = time.monotonic()
    while time.monotonic() < asked + PATIENCE * 4:
        process.poll()
        left = descendants()
        if not left:
            return
        if time.monotonic() > asked + PATIENCE:
            send(left, process.pid, signal.SIGKILL)
        time.sleep(0.02)


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
