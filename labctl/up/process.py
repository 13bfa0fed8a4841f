"""Start processes that do not outlive the one that started them."""

import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from labctl.processes import die_with_parent


def children() -> set[int]:
    """List the children of this process, adopted ones included."""
    # The list is per thread; only the main thread starts processes here, and adopts.
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except FileNotFoundError:
        # A kernel that does not list them; then only those that are known by name are looked after.
        return set()
    return {int(pid) for pid in listed.split()}


def spawn(
    command: Sequence[str | Path],
    *,
    death_signal: int,
    environ: Mapping[str, str] | None = None,
    user: tuple[int, int] | None = None,
    pass_fds: Collection[int] = (),
    cwd: str | Path | None = None,
    output: int = 2,
) -> "subprocess.Popen[bytes]":
    """Start a process that gets ``death_signal`` when this one ends, as ``user`` (uid and gid) where one is given.

    It leads a process group of its own: Ctrl-C reaches this process only, which then stops its children in order.
    """
    parent = os.getpid()
    return subprocess.Popen(  # noqa: S603
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environ,
        cwd=cwd,
        pass_fds=tuple(pass_fds),
        process_group=0,
        user=user[0] if user else None,
        group=user[1] if user else None,
        extra_groups=() if user else None,
        # Runs after the change of user, which would take the signal away again.
        preexec_fn=lambda: die_with_parent(death_signal, parent),
    )


def describe_end(status: int) -> str:
    """Say how a process ended: ``status 3`` or ``SIGKILL``."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
