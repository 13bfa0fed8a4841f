"""The fake executor: what it is told to do wrong, beyond the contract of executors."""

import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from labctl.remote.executor import Failed, Misconfigured, Order, Result, Run
from labctl.remote.executors.fake import FakeExecutor
from labctl.remote.states import Operation, Status


def make(home: Path, **options: Any) -> FakeExecutor:
    return FakeExecutor({"hosts": ["a", "b"], **options}, home)


def begin(executor: FakeExecutor, operation: Operation = Operation.PING, **arguments: Any) -> Run:
    return executor.begin(Order("jid", operation, ("a", "b"), arguments))


def read(run: Run) -> list[Result]:
    results: list[Result] = []
    while not run.ended:
        results += run.read(5)
    return results


def statuses(results: list[Result]) -> dict[str, Status]:
    return {result.host: result.status for result in results}


def test_mistakes_in_the_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured) as caught:
        make(tmp_path, rate=-1, failure_rate=2, seconds={"cook": 1})

    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "seconds.cook.[key]",
        "rate",
        "failure_rate",
    ]


def test_so_many_hosts_as_it_is_told_with_their_groups(tmp_path: Path) -> None:
    executor = make(tmp_path, hosts=2, groups={"web": ["fake-2", "extra"]})

    assert executor.hosts() == {"fake-1": {"fake"}, "fake-2": {"fake", "web"}, "extra": {"fake", "web"}}


def test_it_says_that_it_is_not_real(tmp_path: Path) -> None:
    (facts, _) = read(begin(make(tmp_path), Operation.FACTER))

    assert facts.values["facts"]["real"] is False


def test_it_fails_where_it_is_told_and_may_be_told_while_it_runs(tmp_path: Path) -> None:
    executor = make(tmp_path)
    assert set(statuses(read(begin(executor))).values()) == {Status.OK}
    faults = {"failing": ["a"], "unreachable": ["b"]}
    (tmp_path / "faults.json").write_bytes(orjson.dumps(faults))
    assert statuses(read(begin(executor))) == {"a": Status.FAILED, "b": Status.UNREACHABLE}
    (tmp_path / "faults.json").write_bytes(orjson.dumps({"begin_error": "no", "hosts_error": "gone"}))

    with pytest.raises(Failed, match="no"):
        begin(executor)
    with pytest.raises(Failed, match="gone"):
        executor.hosts()
    assert executor.check() == ["gone"]


def test_it_forgets_lies_and_ends_with_errors(tmp_path: Path) -> None:
    run = begin(make(tmp_path, forgotten=["a"], lies=True, run_error="it fell over"))

    assert [result.host for result in read(run)] == ["b", "b", "nobody-0"]
    assert run.error == "it fell over"


def test_a_host_that_never_answers_keeps_a_run_going_until_it_is_cancelled(tmp_path: Path) -> None:
    run = begin(make(tmp_path, silent=["a"]))
    assert [result.host for result in run.read(5)] == ["b"] and run.read(0.1) == [] and not run.ended
    run.cancel()

    assert read(run) == [] and run.ended


def test_steps_come_in_their_time(tmp_path: Path) -> None:
    began = time.monotonic()
    arguments = {"role": "web", "partial": None, "extra_vars": {}}
    results = read(begin(make(tmp_path, steps=10, rate=50), Operation.DEPLOY, **arguments))

    assert len(results) == 40 and 0.35 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("command", "rtc", "stdout"),
    [
        ("echo 'hello  you'; echo 2", 0, "hello  you\n2\n"),
        ("exit 3; echo no", 3, ""),
        ("false", 1, ""),
        ("echo 'unfinished", 2, ""),
        ("rm -rf /", 0, ""),
    ],
)
def test_it_knows_some_commands(tmp_path: Path, command: str, rtc: int, stdout: str) -> None:
    (result, _) = read(begin(make(tmp_path), Operation.EXECUTE, command=command))

    assert (result.values["rtc"], result.values["stdout"]) == (rtc, stdout)
