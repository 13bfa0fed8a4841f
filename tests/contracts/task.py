"""What every task must do: a subclass says how to make one, and runs all of these."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from labctl.remote.executor import Failed, Order, Result
from labctl.remote.executors.fake import FakeExecutor
from labctl.remote.states import Operation, Status
from labctl.remote.task import Operate, Task

HOSTS = ("alpha", "beta", "gamma")
BAD = (Status.FAILED, Status.UNREACHABLE)


class Over(BaseException):
    """What the runner raises when the job is to end."""


class World:
    """An ``operate`` over the fake executor; it may be told to end, or to fail, after some operations."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.executor = FakeExecutor({"hosts": list(HOSTS), **options}, home)
        self.orders: list[Order] = []
        self.waited = 0.0
        self.over_after: int | None = None
        self.fails_after: int | None = None

    def __call__(self, operation: Operation, hosts: Sequence[str], **arguments: Any) -> Iterator[Result]:
        if self.over_after == len(self.orders):
            raise Over
        if self.fails_after == len(self.orders):
            raise Failed("there is nothing to do it with")
        assert set(hosts) <= set(HOSTS) and len(set(hosts)) == len(hosts)
        self.orders.append(Order("task-1", operation, tuple(hosts), arguments))
        return self._results(self.orders[-1])

    def _results(self, order: Order) -> Iterator[Result]:
        run = self.executor.begin(order)
        while not run.ended:
            yield from run.read(1)

    def wait(self, seconds: float) -> None:
        assert seconds >= 0
        self.waited += seconds


class TaskContract:
    """Subclass as ``Test...`` and give the class, options that go well on the fake, and some that do not."""

    task: ClassVar[type[Task]]
    options: ClassVar[Mapping[str, Any]] = {}
    bad_options: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def carry_out(self, operate: Operate, **changes: Any) -> list[Result]:
        return list(self.task({**self.options, **changes}).run(HOSTS, operate))

    @staticmethod
    def good(results: Sequence[Result]) -> set[str]:
        """Give the hosts that have a result and none that is bad."""
        told = {result.host for result in results if result.status != Status.ANNOUNCE}
        return told - {result.host for result in results if result.status in BAD}

    def test_its_type_is_a_text(self) -> None:
        assert isinstance(self.task.type, str) and self.task.type

    def test_bad_options_are_refused_with_a_line_for_each_mistake(self) -> None:
        for options in self.bad_options:
            with pytest.raises(ValueError, match=r".+"):
                self.task(options)

    def test_to_make_one_leaves_the_options_as_they_are(self) -> None:
        options = dict(self.options)
        self.task(options)

        assert options == self.options

    def test_where_all_goes_well_every_host_has_a_result_and_none_a_bad_one(self, tmp_path: Path) -> None:
        assert self.good(self.carry_out(World(tmp_path))) == set(HOSTS)

    def test_each_step_is_announced_to_a_host_before_its_result(self, tmp_path: Path) -> None:
        announced: Counter[tuple[str, str]] = Counter()
        for result in self.carry_out(World(tmp_path)):
            step = (result.host, result.values["name"])
            assert isinstance(result.values["name"], str) and isinstance(result.values["return_data"], str)
            if result.status == Status.ANNOUNCE:
                announced[step] += 1
            else:
                assert announced[step]

    @pytest.mark.parametrize("fault", ["failing", "unreachable", "forgotten"])
    def test_a_host_on_which_nothing_works_is_not_among_the_good_ones(self, tmp_path: Path, fault: str) -> None:
        results = self.carry_out(World(tmp_path, **{fault: ["beta"]}))

        assert "beta" not in self.good(results)

    def test_an_operation_that_cannot_be_begun_ends_it_with_an_error_or_without_good_hosts(
        self, tmp_path: Path
    ) -> None:
        world = World(tmp_path)
        world.fails_after = 0
        try:
            results = self.carry_out(world)
        except Failed:
            return
        assert self.good(results) == set()

    def test_it_lets_the_end_of_its_job_pass(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        world.over_after = 1

        with pytest.raises(Over):
            self.carry_out(world)

    def test_it_can_be_closed_in_the_middle(self, tmp_path: Path) -> None:
        results = self.task(self.options).run(HOSTS, World(tmp_path))
        next(results)
        results.close()  # type: ignore[attr-defined]
