"""What every executor must do: a subclass says how to make one, and runs all of these."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import pytest

from labctl.remote.executor import Executor, ExecutorError, Order, Result, Run
from labctl.remote.states import Operation, Status

GOOD = (Status.OK, Status.CHANGED)
BAD = (Status.FAILED, Status.UNREACHABLE)
#: Seconds for what takes one or two on a quiet machine.
PATIENCE = 60.0
#: Seconds within which what was cancelled has ended.
CANCELLED_WITHIN = 10.0


def read_all(run: Run, patience: float = PATIENCE) -> list[Result]:
    """Read a run to its end."""
    results: list[Result] = []
    deadline = time.monotonic() + patience
    while not run.ended:
        assert time.monotonic() < deadline, f"it has not ended within {patience} s; results: {results}"
        results += run.read(0.5)
    return results


class ExecutorContract:
    """Subclass as ``Test...`` and give ``make`` (a new executor each time) and the names below."""

    #: Two hosts that answer, and one that cannot be reached; None: there is none.
    hosts: ClassVar[tuple[str, str]]
    dead: ClassVar[str | None] = None
    #: A service that can be started and restarted on them; None: they have none.
    service: ClassVar[str | None] = None
    #: A role with two steps or more that goes well on them, and one that fails on each; None: there is none.
    role: ClassVar[str]
    bad_role: ClassVar[str | None] = None
    extra_vars: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def make(self) -> Callable[[], Executor]:
        """Give what makes an executor."""
        raise NotImplementedError

    @pytest.fixture
    def executor(self, make: Callable[[], Executor]) -> Iterator[Executor]:
        executor = make()
        yield executor
        executor.close()

    def order(self, operation: Operation, *hosts: str, **arguments: Any) -> Order:
        return Order(f"contract-{time.monotonic_ns()}", operation, hosts or self.hosts, arguments, timeout=PATIENCE)

    def ask(self, executor: Executor, operation: Operation, *hosts: str, **arguments: Any) -> dict[str, Result]:
        """Carry out an operation that gives one result for each host."""
        wanted = hosts or self.hosts
        run = executor.begin(self.order(operation, *wanted, **arguments))
        results = read_all(run)
        assert run.error is None
        assert sorted(result.host for result in results) == sorted(wanted)
        return {result.host: result for result in results}

    def deploy(self, executor: Executor, role: str) -> tuple[Run, list[Result]]:
        run = executor.begin(self.order(Operation.DEPLOY, role=role, partial=None, extra_vars=dict(self.extra_vars)))
        return run, read_all(run)

    # Hosts

    def test_nothing_keeps_it_from_working(self, executor: Executor) -> None:
        assert executor.check() == []

    def test_it_knows_its_hosts_with_their_groups(self, executor: Executor) -> None:
        found = executor.hosts()

        assert {*self.hosts, *([self.dead] if self.dead else [])} <= found.keys()
        assert all(isinstance(group, str) for groups in found.values() for group in groups)
        assert executor.hosts() == found

    # Operations

    def test_a_ping_tells_of_each_host_that_it_answers(self, executor: Executor) -> None:
        results = self.ask(executor, Operation.PING)

        assert {result.status for result in results.values()} == {Status.OK}

    def test_a_host_that_cannot_be_reached_is_told_apart_from_the_others(self, executor: Executor) -> None:
        if self.dead is None:
            pytest.skip("all its hosts can be reached")
        results = self.ask(executor, Operation.PING, self.hosts[0], self.dead)

        assert results[self.hosts[0]].status == Status.OK
        assert results[self.dead].status == Status.UNREACHABLE
        assert results[self.dead].values["message"]

    def test_a_command_on_a_host_that_cannot_be_reached_has_no_exit_status(self, executor: Executor) -> None:
        if self.dead is None:
            pytest.skip("all its hosts can be reached")
        result = self.ask(executor, Operation.EXECUTE, self.dead, command="echo hello")[self.dead]

        assert result.status == Status.UNREACHABLE
        assert (result.values["rtc"], result.values["stdout"]) == (None, "") and result.values["stderr"]

    def test_facts_are_an_object(self, executor: Executor) -> None:
        for result in self.ask(executor, Operation.FACTER).values():
            assert result.status == Status.OK
            assert isinstance(result.values["facts"], dict) and result.values["facts"]

    def test_a_command_tells_its_exit_status_and_what_it_said(self, executor: Executor) -> None:
        for result in self.ask(executor, Operation.EXECUTE, command="echo hello").values():
            assert result.status == Status.CHANGED
            assert (result.values["rtc"], result.values["stdout"].strip()) == (0, "hello")
            assert isinstance(result.values["stderr"], str)

    def test_a_command_that_exits_with_another_status_than_zero_has_failed(self, executor: Executor) -> None:
        for result in self.ask(executor, Operation.EXECUTE, command="echo hello; exit 3").values():
            assert result.status == Status.FAILED
            assert (result.values["rtc"], result.values["stdout"].strip()) == (3, "hello")

    def test_a_service_is_started_and_restarted(self, executor: Executor) -> None:
        if self.service is None:
            pytest.skip("its hosts have no service for this")
        for restart, graceful in ((False, False), (True, False), (True, True)):
            arguments = {"name": self.service, "start": True, "restart": restart, "graceful": graceful}
            results = self.ask(executor, Operation.SERVICE, **arguments)
            assert all(result.status in GOOD for result in results.values()), results

    def test_a_role_announces_each_step_to_each_host_before_it_tells_how_it_went(self, executor: Executor) -> None:
        run, results = self.deploy(executor, self.role)

        assert run.error is None
        for host in self.hosts:
            steps = [result for result in results if result.host == host]
            assert len({result.values["name"] for result in steps}) >= 2
            announced: set[str] = set()
            for result in steps:
                assert isinstance(result.values["name"], str) and isinstance(result.values["return_data"], str)
                if result.status == Status.ANNOUNCE:
                    announced.add(result.values["name"])
                else:
                    assert result.values["name"] in announced
                    assert result.status not in BAD
            assert steps[-1].status != Status.ANNOUNCE
        assert {result.host for result in results} == set(self.hosts)

    def test_a_role_that_fails_says_so_of_its_hosts_and_is_no_error_of_the_executor(self, executor: Executor) -> None:
        if self.bad_role is None:
            pytest.skip("it has no role that fails")
        run, results = self.deploy(executor, self.bad_role)

        assert run.error is None
        assert {result.host for result in results if result.status == Status.FAILED} == set(self.hosts)

    # What cannot be done

    def test_a_host_it_does_not_know_is_an_error_or_not_reached_and_nothing_waits_for_it(
        self, executor: Executor
    ) -> None:
        assert self.refused(executor, self.order(Operation.PING, "no-such-host"))

    @pytest.mark.parametrize(
        ("operation", "arguments"),
        [
            (Operation.PING, {"command": "true"}),
            (Operation.EXECUTE, {}),
            (Operation.EXECUTE, {"command": "true", "chdir": "/"}),
            (Operation.EXECUTE, {"command": ["true"]}),
            (Operation.SERVICE, {"name": "x"}),
            (Operation.DEPLOY, {"role": "x"}),
            (Operation.DEPLOY, {"role": "x", "partial": None, "extra_vars": "@/etc/passwd"}),
            (Operation.TASK, {}),
        ],
    )
    def test_arguments_that_do_not_belong_to_an_operation_are_refused(
        self, executor: Executor, operation: Operation, arguments: dict[str, Any]
    ) -> None:
        assert self.refused(executor, self.order(operation, **arguments))

    def refused(self, executor: Executor, order: Order) -> bool:
        """Tell whether an order is not carried out, which is said at once or at the end of its run."""
        try:
            run = executor.begin(order)
        except ExecutorError as error:
            return bool(str(error))
        results = read_all(run)
        return bool(run.error) or {result.status for result in results} == {Status.UNREACHABLE}

    # Runs

    def test_an_order_begins_at_once_and_reading_waits_no_longer_than_it_is_told(self, executor: Executor) -> None:
        # The first order may have to start what the others find.
        self.ask(executor, Operation.PING)
        began = time.monotonic()
        run = executor.begin(self.order(Operation.EXECUTE, self.hosts[0], command="sleep 30"))
        assert run.read(0) == [] and run.read(0.1) == []

        assert time.monotonic() - began < 5
        assert not run.ended and run.error is None
        run.cancel()
        read_all(run, CANCELLED_WITHIN)

    def test_runs_go_on_at_the_same_time(self, executor: Executor) -> None:
        slow = executor.begin(self.order(Operation.EXECUTE, self.hosts[0], command="sleep 30"))
        assert self.ask(executor, Operation.EXECUTE, self.hosts[1], command="echo hello")

        assert not slow.ended
        slow.cancel()
        read_all(slow, CANCELLED_WITHIN)

    def test_what_is_cancelled_ends_within_seconds_and_twice_is_once(self, executor: Executor) -> None:
        run = executor.begin(self.order(Operation.EXECUTE, command="sleep 120"))
        run.read(1)
        run.cancel()
        run.cancel()
        results = read_all(run, CANCELLED_WITHIN)
        run.cancel()

        assert run.ended
        assert not [result for result in results if result.status in GOOD]

    def test_hosts_that_were_done_before_it_is_cancelled_keep_their_results(self, executor: Executor) -> None:
        if self.dead is None:
            pytest.skip("all its hosts can be reached")
        run = executor.begin(self.order(Operation.EXECUTE, self.dead, self.hosts[0], command="sleep 120"))
        results: list[Result] = []
        deadline = time.monotonic() + PATIENCE
        while not results:
            assert time.monotonic() < deadline and not run.ended
            results += run.read(0.5)
        run.cancel()

        assert (results[0].host, results[0].status) == (self.dead, Status.UNREACHABLE)
        read_all(run, CANCELLED_WITHIN)

    def test_after_its_end_there_is_nothing_more_to_read_and_nothing_to_cancel(self, executor: Executor) -> None:
        run = executor.begin(self.order(Operation.PING))
        read_all(run)

        assert run.read(0) == [] and run.read(0.1) == []
        run.cancel()
        assert run.ended and run.error is None

    def test_closing_it_ends_what_goes_on_and_closing_it_twice_is_no_error(self, make: Callable[[], Executor]) -> None:
        executor = make()
        run = executor.begin(self.order(Operation.EXECUTE, command="sleep 120"))
        began = time.monotonic()
        executor.close()
        read_all(run, CANCELLED_WITHIN)
        executor.close()

        assert time.monotonic() - began < CANCELLED_WITHIN

    def test_an_executor_that_was_only_made_can_be_closed(self, make: Callable[[], Executor]) -> None:
        make().close()
