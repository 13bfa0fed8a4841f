"""What the kernel does for whoever looks after processes: ends children with their parent, and finds descendants."""

import ctypes
import os
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_prctl = ctypes.CDLL(None, use_errno=True).prctl


def die_with_parent(number: int, parent: int) -> None:
    """Have the kernel send this process the signal ``number`` when its parent, process ``parent``, ends in any way.

    To the kernel the parent is the thread that started this process.
    """
    _call(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        # It was gone before the kernel knew.
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none of them gets lost."""
    _call(PR_SET_CHILD_SUBREAPER, 1)


def descendants(*roots: int) -> set[int]:
    """Find the children of processes, their children and so on, as they are now; without those that have ended."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if state not in "ZX":
                parents[int(entry)] = int(parent)
    found: set[int] = set()
    known = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in known} - found:
        found |= more
        known |= more
    return found


def _call(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
