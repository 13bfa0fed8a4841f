"""The fake workflow, as it is told."""

from typing import Any

import pytest

from labctl.maintenance.states import ActionType
from labctl.maintenance.workflow import Drain, Next, Progress, Run
from labctl.maintenance.workflows.fake import STATES, FakeWorkflow

from .views import NOW, at, host, view, vm

WORKFLOW = FakeWorkflow()


def next_of(state: str, *hosts: Any, **changes: Any) -> Next:
    return WORKFLOW.steps[state](view(state, *hosts, **changes))


def test_it_walks_through_the_states_of_the_default_workflow() -> None:
    way = [next_of(state, host("a", "done")).state for state in STATES]
    assert way == [*STATES[1:], "MAINTENANCE_DONE"]


def test_it_walks_through_those_it_is_told_in_that_order() -> None:
    told = {"states": ["MAINTENANCE", "MAINTENANCE_COMPLETE", "SCALE_IN"]}
    way = [next_of(state, metadata=told).state for state in told["states"]]
    assert way == ["MAINTENANCE_COMPLETE", "SCALE_IN", "MAINTENANCE_DONE"]


@pytest.mark.parametrize("state", STATES)
def test_it_stays_fails_and_breaks_where_it_is_told_to(state: str) -> None:
    for seconds in (5, {state: 5}):
        staying = next_of(state, entered=NOW, metadata={"seconds": seconds})
        assert staying == Next(waits_for="the time it was told to stay", until=at(5))
    assert next_of(state, metadata={"fail": [state]}) == Next(failed=f"it was told to fail in {state}")
    with pytest.raises(RuntimeError, match=state):
        next_of(state, metadata={"raise": [state]})


def test_it_does_what_the_default_workflow_does_and_asks_nobody() -> None:
    used = host("a", "waiting", vm("1"))
    assert next_of("MAINTENANCE", used, maintenance_at=at(5)) == Next(waits_for="maintenance_at", until=at(5))
    assert next_of("MAINTENANCE", used, downloads=Progress.RUNNING) == Next(waits_for="downloads")
    assert next_of("MAINTENANCE", downloads=Progress.FAILED, reason="404") == Next(failed="404")
    assert next_of("MAINTENANCE", used, pre=Progress.NONE).do == (Run(ActionType.PRE),)
    assert next_of("MAINTENANCE_COMPLETE", post=Progress.NONE).do == (Run(ActionType.POST),)
    assert next_of("START_MAINTENANCE", host("b"), used).do == (Drain("b"),)
    found = next_of("START_MAINTENANCE", used)
    assert found == Next(do=(Drain("a"),), waits_for="a to be free of 1 (ada)", until=at(3600))
    assert next_of("START_MAINTENANCE", host("a", "failed", reason="x")) == Next(failed="a: x")


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ({}, []),
        ({"states": list(STATES), "seconds": 1.5, "fail": ["SCALE_IN"], "raise": []}, []),
        ({"seconds": {"SCALE_IN": 5}}, []),
        *(({"states": value}, ["states"]) for value in ("x", [], ["SCALE_IN"], ["MAINTENANCE", "MAINTENANCE"], None)),
        *(({"seconds": value}, ["seconds"]) for value in (-1, "1", True, {"NIRVANA": 1}, {"SCALE_IN": -1}, 1e300)),
        ({"fail": ["x"], "raise": 5, "max_unavailable": 0}, ["max_unavailable", "fail", "raise"]),
        ({"states": [{}], "fail": [[]]}, ["states", "fail", "states"]),
    ],
)
def test_every_mistake_in_its_hints_is_named(metadata: Any, wrong: list[str]) -> None:
    assert [line.partition(":")[0] for line in WORKFLOW.check(metadata)] == wrong
