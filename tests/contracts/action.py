"""What every action must do: a subclass says how to make one and what its operations give, and runs all of these."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from labctl.maintenance.action import Action, Done, Failed, Operate, Outcome, View, Wait
from labctl.maintenance.states import ActionType
from labctl.remote.states import Operation

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTS = ("one", "two", "three")
DOWNLOADS = {"https://files.example.com/SW1.tar.gz": "/srv/labctl/SW1.tar.gz"}
#: Steps after which an action that is not at its end never will be.
MOST = 2000

#: What an operation needs to be carried out.
NEEDED = {"execute": {"command"}, "deploy": {"role"}, "service": {"name"}}


class ActionContract:
    """Subclass as ``Test...`` and give ``kind``, ``metadata`` that is right, and ``well``."""

    kind: ClassVar[type[Action]]
    #: Metadata that are right, as few as there can be, and such that are not, with the keys that are wrong.
    metadata: ClassVar[Mapping[str, Any]] = {}
    wrong: ClassVar[Mapping[str, tuple[Mapping[str, Any], set[str]]]] = {}
    #: Whether it does anything on hosts.
    operates: ClassVar[bool] = True

    def well(self, wanted: Operate, times: int) -> Mapping[str, Any]:
        """Give the output of a host for which all goes well; ``times``: how often it was asked anything before."""
        return {"status": 5, "rtc": 0, "stdout": "", "stderr": ""}

    def play(self, answer: Callable[[Operate, int], Outcome], view: View, most: int = MOST) -> tuple[Any, list[Any]]:
        """Go through all of it, with an object made anew each time; gives its end, and what it wanted."""
        wanted: list[Any] = []
        for _ in range(most):
            action = self.kind(copy.deepcopy(self.metadata))
            step = action.next(view)
            # It decides from its view alone.
            assert self.kind(copy.deepcopy(self.metadata)).next(view) == step
            wanted.append(step)
            match step:
                case Done() | Failed():
                    return step, wanted
                case Wait():
                    assert step.seconds > 0
                    view = replace(view, now=view.now + timedelta(seconds=step.seconds))
                case Operate():
                    outcome = answer(step, len(view.outcomes))
                    view = replace(view, now=outcome.ended, outcomes=(*view.outcomes, outcome))
        return None, wanted

    def ok(self, view: View) -> Callable[[Operate, int], Outcome]:
        def answer(wanted: Operate, times: int) -> Outcome:
            outputs = {host: self.well(wanted, times) for host in wanted.hosts}
            return Outcome(wanted.step, True, "", outputs, view.now + timedelta(seconds=times + 1))

        return answer

    def bad(self, view: View, error: str, output: Mapping[str, Any] | None) -> Callable[[Operate, int], Outcome]:
        def answer(wanted: Operate, times: int) -> Outcome:
            outputs = dict.fromkeys(wanted.hosts, output) if output is not None else {}
            return Outcome(wanted.step, False, error, outputs, view.now + timedelta(seconds=times + 1))

        return answer

    def views(self) -> list[View]:
        """Give what it sees when it begins, for each type that it may be."""
        of_hosts = (ActionType.HOST, ActionType.CHECK)
        hosts = ["two" if kind in of_hosts else "" for kind in sorted(self.kind.types)]
        return [View(host=host, hosts=HOSTS, downloads=DOWNLOADS, started=BEGAN, now=BEGAN) for host in hosts]

    def test_what_goes_well_ends_well(self) -> None:
        for view in self.views():
            end, _ = self.play(self.ok(view), view)
            assert end == Done()

    def test_what_it_wants_is_an_operation_on_its_hosts_with_a_name_of_its_own(self) -> None:
        for view in self.views():
            _, wanted = self.play(self.ok(view), view)
            operations = [step for step in wanted if isinstance(step, Operate)]
            assert bool(operations) == self.operates
            assert len({step.step for step in operations}) == len(operations)
            for step in operations:
                assert step.operation in set(Operation)
                assert set(step.arguments) >= NEEDED.get(step.operation, set())
                assert step.hosts == ((view.host,) if view.host else HOSTS)
                assert step.timeout is None or step.timeout > 0

    def test_what_never_goes_well_fails_and_says_why(self) -> None:
        output = {"status": 3, "rtc": 1, "stdout": "", "stderr": "no space left"}
        for view in self.views():
            end, _ = self.play(self.bad(view, "1 of 1 failed", output), view)
            # Otherwise it waits for better times until its deadline.
            assert end is None or isinstance(end, Failed if self.operates else Done)
            if isinstance(end, Failed):
                assert "1 of 1 failed" in end.reason and "no space left" in end.reason

    def test_a_job_that_ended_without_output_is_no_surprise(self) -> None:
        for view in self.views():
            end, _ = self.play(self.bad(view, "its job was deleted", None), view)
            assert end is None or isinstance(end, Failed if self.operates else Done)

    def test_its_deadline_is_a_number_of_seconds_that_metadata_may_change(self) -> None:
        assert self.kind.timeout > 0
        self.kind({**self.metadata, "timeout": 12.5})

    def test_it_is_of_some_type(self) -> None:
        assert self.kind.types and self.kind.types <= set(ActionType)

    def test_wrong_metadata_are_refused_with_a_line_for_each_mistake(self) -> None:
        wrong = {
            "what is unknown": ({"no_such_key": 1}, {"no_such_key"}),
            "no time": ({"timeout": 0}, {"timeout"}),
            **self.wrong,
        }
        for name, (changes, keys) in wrong.items():
            with pytest.raises(ValueError, match=r".") as caught:
                self.kind({**self.metadata, **changes})
            lines = str(caught.value).splitlines()
            assert {line.partition(":")[0].partition(".")[0] for line in lines} == keys, name
            assert all(len(line.partition(": ")[2]) > 5 for line in lines), name
