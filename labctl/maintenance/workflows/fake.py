"""A workflow that does as it is told by the session's ``metadata``, and asks nobody: for tests and demonstrations.

By default it walks through the states of the default workflow and maintains all hosts on the way. ``states`` lists
those it walks through, ``seconds`` says how long it stays in each (a number, or an object by state), ``fail`` and
``raise`` list those in which it fails or breaks; ``max_unavailable`` and ``gate`` are as everywhere.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from labctl.maintenance.states import DONE, FIRST, ActionType, HostState
from labctl.maintenance.workflow import Drain, Next, Progress, View, Workflow
from labctl.maintenance.workflows import default, hints
from labctl.maintenance.workflows.asking import Waits, ends, in_use

STATES = tuple(default.STEPS)


class FakeWorkflow(Workflow):
    """Walks through states as it is told."""

    checks_hosts = False

    @property
    def steps(self) -> Mapping[str, Callable[[View], Next]]:
        """Give the step of each state."""
        return dict.fromkeys(STATES, step)

    def check(self, metadata: Mapping[str, Any]) -> list[str]:
        """List what is wrong with the hints."""
        wrong = hints.mistakes(metadata)
        there = ", ".join(STATES)
        for key in ("states", "fail", "raise"):
            value = metadata.get(key, [])
            if not isinstance(value, list) or any(state not in STATES for state in value):
                wrong.append(f"{key}: must be a list of some of {there}")
        states = metadata.get("states", STATES)
        if isinstance(states, list) and (len(set(map(str, states))) < len(states) or states[:1] != [FIRST]):
            wrong.append(f"states: must begin with {FIRST}, and have no state twice")
        seconds = metadata.get("seconds", 0)
        by_state = seconds if isinstance(seconds, dict) else dict.fromkeys(STATES, seconds)
        if any(state not in STATES or not _is_time(value) for state, value in by_state.items()):
            wrong.append(f"seconds: must be a number, or an object of numbers by state, some of {there}")
        return wrong


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < hints.MOST


def step(view: View) -> Next:
    """Take one step in any state."""
    told = view.metadata
    if view.state in told.get("raise", ()):
        raise RuntimeError(f"it was told to break in {view.state}")
    if view.state in told.get("fail", ()):
        return Next(failed=f"it was told to fail in {view.state}")
    seconds = told.get("seconds", 0)
    stays_until = view.entered + timedelta(seconds=seconds.get(view.state, 0) if isinstance(seconds, dict) else seconds)
    if view.now < stays_until:
        return Next(waits_for="the time it was told to stay", until=stays_until)
    doing = WORK[view.state](view) if view.state in WORK else None
    if doing is not None:
        return doing
    later = STATES[STATES.index(view.state) + 1 :]
    states = list(told.get("states", STATES))
    if view.state in states:
        later = tuple(states[states.index(view.state) + 1 :])
    return Next(state=next((state for state in later if state in states), DONE))


def _begin(view: View) -> Next | None:
    if view.downloads == Progress.FAILED:
        return Next(failed=view.reason or "a download failed")
    if view.downloads == Progress.RUNNING:
        return Next(waits_for="downloads")
    if view.now < view.maintenance_at:
        return Next(waits_for="maintenance_at", until=view.maintenance_at)
    return default.once(view, ActionType.PRE, view.pre)


def _hosts(view: View) -> Next | None:
    doing = default.start(view)
    if doing.state is None:
        return doing
    left = default.left(view)
    if not left:
        return None
    # All that are left are in use.
    waiting = [host.name for host in left if host.state == HostState.WAITING]
    waits = Waits()
    for host in left:
        waits.add(in_use(host), *ends(host))
    return waits.next(Drain(name) for name in waiting[: max(default.room(view), 0)])


def _end(view: View) -> Next | None:
    return default.once(view, ActionType.POST, view.post)


WORK: Mapping[str, Callable[[View], Next | None]] = {
    FIRST: _begin,
    default.START: _hosts,
    default.COMPLETE: _end,
}
