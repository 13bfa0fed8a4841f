"""What the kernel does for whoever looks after processes: ends them with their parent, finds them, signals them."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
#: States of processes that have ended, and of those that do nothing: the stopped ones too.
ENDED = "ZX"
STILL = "ZXTt"
#: Seconds in which processes have stopped; it takes some thousandths.
STOP_WITHIN = 1.0
#: Seconds between two looks.
LOOK_AGAIN = 0.002

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


def descendants(*roots: int, without: Container[int] = ()) -> list[int]:
    """Find the children of processes, their children and so on, as they are now; without those that have ended.

    Parents come before their children. Processes of ``without`` are left out, and so is what is below them.
    """
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            state, parent = _look(int(entry))
            if state not in ENDED:
                children.setdefault(parent, []).append(int(entry))
    found = list(roots)
    # It grows meanwhile.
    for pid in found:
        found += [child for child in children.pop(pid, ()) if child not in without]
    return found[len(roots) :]


def send(pids: Iterable[int], number: signal.Signals) -> set[int]:
    """Send a signal to processes, some of which may have ended; give those that are another user's and get none."""
    foreign = set()
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            foreign.add(pid)
    return foreign


def send_to_all(find: Callable[[], list[int]], number: signal.Signals) -> set[int]:
    """Send a signal to all processes that ``find`` gives, so that none of them does anything more before it has it.

    A shell whose child has ended goes on with its next command, unless the signal has reached the shell as well; and a
    process that is started meanwhile would get none. So all of them are stopped first. Gives those that got no signal
    because they are another user's.
    """
    pids = _stop(find)
    foreign = send(pids, number)
    # Children before their parents: some shells stop themselves when they find a child stopped.
    send(reversed(pids), signal.SIGCONT)
    return foreign


def _stop(find: Callable[[], list[int]]) -> list[int]:
    """Stop processes, and those that they start meanwhile; after a while without those that cannot be stopped."""
    deadline = time.monotonic() + STOP_WITHIN
    before = None
    foreign: set[int] = set()
    while True:
        found = find()
        running = [pid for pid in found if pid not in foreign and _look(pid)[0] not in STILL]
        # Twice, since what one look finds is not of one moment.
        if (not running and found == before) or time.monotonic() >= deadline:
            return found
        before = None if running else found
        foreign |= send(running, signal.SIGSTOP)
        time.sleep(LOOK_AGAIN)


def _look(pid: int) -> tuple[str, int]:
    """Give the state and the parent of a process, as proc(5) tells them; ``X`` is one that is no more."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        return state, int(parent)
    except (OSError, ValueError):
        return "X", 0


def _call(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
