"""Jobs that are carried out: what comes of them, whatever the executor, a user or the worker does meanwhile."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from labctl import clock, db, errors
from labctl.remote import carrying
from labctl.remote import tasks as remote_tasks
from labctl.remote.executor import Order, Result, Run
from labctl.remote.executors.fake import FakeExecutor
from labctl.remote.models import RemoteHost, RemoteInventory, RemoteJob
from labctl.remote.states import Operation, Status
from labctl.remote.task import Operate, Task
from labctl.settings import Settings

from .lab import HOSTS, RemoteLab, until


@pytest.fixture
def lab(committed: Engine, tmp_path: Path) -> Iterator[RemoteLab]:
    lab = RemoteLab(tmp_path / "remote")
    yield lab
    lab.close()


# How jobs end


def test_a_ping_that_all_hosts_answer_is_done(lab: RemoteLab) -> None:
    lab.start()
    job = lab.carry_out()

    assert (job.state, job.error, job.unmasked) == ("done", "", None)
    assert lab.hosts(job) == dict.fromkeys(HOSTS, "ok")
    assert lab.output(job) == [{"status": 1}] * 3
    assert [event.kind for event in lab.events(job)] == ["remote.job_started", "remote.job_ended"]
    assert lab.events(job)[1].data["hosts"] == {"ok": 3}
    assert job.started <= job.finished


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (Operation.PING, "total 2 of 3 remote host(s) no response"),
        (Operation.FACTER, "total 2 of 3 remote host(s) no response"),
        (Operation.SERVICE, "2 of 3 remote host(s) got service errors"),
        (Operation.EXECUTE, "2 of 3 remote host(s) got execute errors"),
        (Operation.DEPLOY, "2 of 3 remote host(s) got deploy errors"),
    ],
)
def test_hosts_that_fail_make_the_job_fail_with_their_number(lab: RemoteLab, operation: Operation, error: str) -> None:
    lab.start(failing=["beta"], unreachable=["gamma"])
    job = lab.carry_out(operation)

    assert (job.state, job.error) == ("failed", error)
    assert lab.hosts(job)["beta"] == "failed" and lab.hosts(job)["gamma"] == "unreachable"
    assert lab.hosts(job)["alpha"] in ("ok", "changed")
    assert lab.held() == []


def test_a_deploy_gives_each_step_as_it_goes_and_each_host_how_it_ended(lab: RemoteLab) -> None:
    lab.start(steps=2)
    job = lab.carry_out(Operation.DEPLOY)

    assert job.state == "done" and lab.hosts(job) == dict.fromkeys(HOSTS, "changed")
    assert [chunk["status"] for chunk in lab.output(job, "beta")] == [0, 1, 0, 5]
    assert set(lab.output(job, "beta")[0]) == {"name", "status", "return_data"}


def test_hosts_of_which_nothing_came_have_failed_and_a_chunk_says_so(lab: RemoteLab) -> None:
    lab.start(forgotten=["beta"])
    for operation, values in (
        (Operation.PING, {}),
        (Operation.FACTER, {"facts": {}}),
        (Operation.EXECUTE, {"rtc": None, "stdout": "", "stderr": "nothing came from this host"}),
        (Operation.DEPLOY, {"name": "end", "return_data": "nothing came from this host"}),
    ):
        job = lab.carry_out(operation)
        assert job.state == "failed" and "1 of 3" in job.error
        expected = {"status": 3, "message": "nothing came from this host", **values}
        assert lab.output(job, "beta") == [expected]
        assert lab.hosts(job)["beta"] == "failed" and lab.hosts(job)["alpha"] in ("ok", "changed")


def test_results_of_other_hosts_and_second_ones_are_dropped(lab: RemoteLab) -> None:
    lab.start(lies=True)
    job = lab.carry_out()

    assert job.state == "done" and lab.output(job) == [{"status": 1}] * 3


def test_an_operation_that_cannot_be_begun_fails_with_the_executors_reason_and_without_output(lab: RemoteLab) -> None:
    lab.start(begin_error="there is no playbook for this")
    job = lab.carry_out(Operation.DEPLOY)

    assert (job.state, job.error) == ("failed", "got executor error, there is no playbook for this")
    assert lab.output(job) == [] and lab.hosts(job) == dict.fromkeys(HOSTS, "failed") and lab.held() == []


def test_an_executor_that_gives_up_at_the_end_fails_the_job_and_finished_hosts_keep_their_results(
    lab: RemoteLab,
) -> None:
    lab.start(run_error="it fell over", forgotten=["gamma"])
    job = lab.carry_out(Operation.EXECUTE)

    assert (job.state, job.error) == ("failed", "got executor error, it fell over")
    assert lab.hosts(job) == {"alpha": "changed", "beta": "changed", "gamma": "failed"}


def test_an_error_that_nobody_has_thought_of_fails_the_job(lab: RemoteLab) -> None:
    lab.start(crash=True)
    job = lab.carry_out()

    assert (job.state, job.error) == ("failed", "got unexpected error, RuntimeError: nobody has thought of this")


def test_secrets_are_in_no_error(lab: RemoteLab) -> None:
    lab.start(begin_error="cannot log in with hunter2")
    given = {"role": "web", "partial": None, "extra_vars": {"password": "hunter2"}}
    job = lab.carry_out(Operation.DEPLOY, arguments={"extra_vars": {"password": "***"}}, unmasked=given)

    assert job.error == "got executor error, cannot log in with ***"
    assert "hunter2" not in str([event.data for event in lab.events(job)])


# Output


def test_output_that_no_database_takes_is_stored_all_the_same(lab: RemoteLab) -> None:
    lab.start(Odd({"stdout": "a\0b\ud800c", "rtc": float("nan"), "big": 1 << 80, "set": {1}}))
    job = lab.carry_out(Operation.EXECUTE, ["alpha"])

    assert job.state == "done"
    expected = {"status": 5, "stdout": "a�b�c", "rtc": "nan", "big": str(1 << 80), "set": [1]}
    assert lab.output(job) == [expected]


def test_a_job_whose_output_cannot_be_stored_ends_all_the_same(lab: RemoteLab, monkeypatch: pytest.MonkeyPatch) -> None:
    # No text that an executor gives is known to do this.
    monkeypatch.setattr("labctl.remote.chunks.make", lambda *_: "\0")
    lab.start()
    job = lab.carry_out()

    assert (job.state, job.error) == ("failed", "got unexpected error, its output could not be written")
    assert "waiting" not in lab.hosts(job).values() and lab.output(job) == []


def test_output_that_is_too_long_is_cut_in_the_middle(lab: RemoteLab) -> None:
    lab.start(Odd({"stdout": "b" * 5000 + "e" * 5000, "rtc": 0}), most_output=2000)
    (chunk,) = lab.output(lab.carry_out(Operation.EXECUTE, ["alpha"]))

    assert chunk["stdout"].startswith("bbb") and chunk["stdout"].endswith("eee") and "left out" in chunk["stdout"]
    assert len(chunk["stdout"]) < 2000 and chunk["rtc"] == 0


def test_output_is_there_while_the_job_goes_on(lab: RemoteLab) -> None:
    lab.start(silent=["gamma"])
    jid = lab.queue()
    until(lambda: len(lab.output(lab.job(jid))) == 2, "two hosts have answered")

    assert lab.job(jid).state == "running"
    lab.cancel(jid)
    lab.ended(jid)


def test_a_thousand_results_a_second_reach_the_database(lab: RemoteLab) -> None:
    lab.start(hosts=100, steps=20, rate=1000)
    hosts = [f"fake-{n + 1}" for n in range(100)]
    job = lab.carry_out(Operation.DEPLOY, hosts)

    assert job.state == "done" and len(lab.output(job)) == 100 * 20 * 2
    assert (job.finished - job.started).total_seconds() < 10


# Ends before their time


def test_a_cancelled_job_ends_and_finished_hosts_keep_their_results(lab: RemoteLab) -> None:
    lab.start(silent=["gamma"])
    jid = lab.queue(Operation.EXECUTE)
    until(lambda: len(lab.output(lab.job(jid))) == 2, "two hosts have answered")
    lab.cancel(jid)
    job = lab.ended(jid, 5)

    assert (job.state, job.error) == ("cancelled", "cancelled by operator")
    assert lab.hosts(job) == {"alpha": "changed", "beta": "changed", "gamma": "failed"}
    assert lab.output(job, "gamma")[0]["stderr"] == "cancelled by operator"


def test_a_cancelled_deploy_has_failed_on_every_host_that_was_not_at_its_end(lab: RemoteLab) -> None:
    lab.start(seconds={"deploy": 30}, unreachable=["gamma"], steps=300)
    jid = lab.queue(Operation.DEPLOY)
    until(lambda: len(lab.output(lab.job(jid), "gamma")) == 2, "it has begun")
    lab.cancel(jid)
    job = lab.ended(jid, 5)

    assert lab.hosts(job) == {"alpha": "failed", "beta": "failed", "gamma": "unreachable"}
    assert lab.output(job, "alpha")[-1]["return_data"] == "cancelled by operator"
    assert lab.held() == []


def test_a_job_whose_time_is_over_fails(lab: RemoteLab) -> None:
    lab.start(seconds={"deploy": 60})
    job = lab.ended(lab.queue(Operation.DEPLOY, timeout=0.5), 5)

    assert (job.state, job.error) == ("failed", "timed out after 0.5 s")


def test_a_command_whose_time_is_over_has_failed_with_what_it_has_said(lab: RemoteLab) -> None:
    lab.start()
    arguments = {"command": "echo so far; sleep 60; echo never"}
    job = lab.ended(lab.queue(Operation.EXECUTE, ["alpha"], arguments, timeout=0.5), 5)

    assert (job.state, job.error, lab.hosts(job)) == ("failed", "timed out after 0.5 s", {"alpha": "failed"})
    expected = {"rtc": 124, "stdout": "so far\n", "stderr": "", "message": "timed out after 0.5 s", "status": 3}
    assert lab.output(job) == [expected]


def test_a_command_of_which_its_host_tells_nothing_ends_some_seconds_later(
    lab: RemoteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "TELL_WITHIN", 0.5)
    lab.start(silent=["beta"])
    job = lab.ended(lab.queue(Operation.EXECUTE, arguments={"command": "echo hello"}, timeout=0.5), 5)

    assert (job.state, job.error) == ("failed", "timed out after 0.5 s")
    assert lab.hosts(job) == {"alpha": "changed", "beta": "failed", "gamma": "changed"}
    assert lab.output(job, "beta")[0]["stderr"] == "timed out after 0.5 s"


def test_a_run_that_does_not_end_when_it_is_cancelled_is_left_to_itself(
    lab: RemoteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "CANCEL_PATIENCE", 0.3)
    lab.start(silent=["gamma"], cancel_seconds=3)
    jid = lab.queue()
    lab.is_running(jid)
    lab.cancel(jid)
    began = time.monotonic()

    assert lab.ended(jid).state == "cancelled" and time.monotonic() - began < 5


def test_a_job_ends_even_if_the_executor_hangs(lab: RemoteLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "CANCEL_PATIENCE", -1.8)
    hanging = Hanging()
    lab.start(hanging)
    job = lab.ended(lab.queue(Operation.DEPLOY, timeout=0.5), 10)
    hanging.go_on.set()

    assert (job.state, job.error) == ("failed", "timed out after 0.5 s") and lab.held() == []


# Many


def test_no_more_jobs_go_on_at_once_than_the_setting_says_and_the_others_wait_their_turn(lab: RemoteLab) -> None:
    lab.start(most=2, seconds={"service": 0.2})
    jids = [lab.queue(Operation.SERVICE) for _ in range(6)]
    most = 0
    while any(lab.job(jid).state in ("queued", "running") for jid in jids):
        most = max(most, sum(lab.job(jid).state == "running" for jid in jids))

    jobs = [lab.job(jid) for jid in jids]
    assert {job.state for job in jobs} == {"done"} and most <= 2
    assert [job.id for job in sorted(jobs, key=lambda job: job.started)] == sorted(job.id for job in jobs)


def test_pings_and_facts_do_not_wait_for_long_jobs_to_end(lab: RemoteLab) -> None:
    lab.start(most=2)
    long = [lab.queue(Operation.EXECUTE, arguments={"command": "sleep 60"}) for _ in range(3)]
    for jid in long[:2]:
        lab.is_running(jid)
    short = [lab.ended(lab.queue(operation), 10) for operation in (Operation.PING, Operation.FACTER)]

    assert [job.state for job in short] == ["done", "done"]
    assert [lab.job(jid).state for jid in long] == ["running", "running", "queued"]
    for jid in long:
        lab.cancel(jid)
    assert {lab.ended(jid, 10).state for jid in long} == {"cancelled"}


def test_pings_have_their_own_places_and_take_those_for_all_only_in_their_turn(lab: RemoteLab) -> None:
    lab.start(most=1, seconds={"ping": 60})
    pings = [lab.queue() for _ in range(4)]
    # Two in places of their own, one in the place for any.
    for jid in pings[:3]:
        lab.is_running(jid)
    long = lab.queue(Operation.EXECUTE)
    lab.cancel(pings[0])
    lab.ended(pings[0], 10)
    lab.is_running(pings[3])
    assert lab.job(long).state == "queued"
    lab.cancel(pings[1])

    assert lab.ended(long, 10).state == "done"
    for jid in pings:
        lab.cancel(jid)


def test_two_runners_share_the_jobs_and_none_is_carried_out_twice(lab: RemoteLab) -> None:
    for _ in range(2):
        lab.start(most=3)
    jobs = [lab.ended(jid) for jid in [lab.queue() for _ in range(30)]]

    assert {job.state for job in jobs} == {"done"} and {job.lease_attempt for job in jobs} == {1}
    assert all(len(lab.output(job)) == 3 for job in jobs)


def test_a_runner_that_is_woken_begins_at_once(lab: RemoteLab, settings: Settings) -> None:
    runner = lab.start()
    lab.carry_out()
    runner._poll = 30.0
    jid = lab.queue()
    remote_tasks.wake.function(settings)

    assert lab.ended(jid, 5).state == "done"


# Leases


def test_a_job_that_somebody_has_ended_is_cancelled_and_nothing_more_is_written(lab: RemoteLab) -> None:
    executor = FakeExecutor({"hosts": HOSTS, "silent": ["gamma"]}, lab.home)
    runner = lab.start(executor)
    jid = lab.queue(Operation.EXECUTE)
    until(lambda: len(lab.output(lab.job(jid))) == 2, "two hosts have answered")
    with db.transaction() as session:
        values = {"lease_until": clock.now()}
        session.execute(update(RemoteJob).where(RemoteJob.jid == jid).values(values))
    job = lab.ended(jid)
    until(lambda: all(run.over for run in executor._runs), "its run is cancelled")
    until(lambda: not runner.busy, "its thread has ended")

    assert (job.state, job.error) == ("failed", "the worker that carried this out was lost")
    assert len(lab.output(job)) == 2
    assert lab.hosts(job) == {"alpha": "changed", "beta": "changed", "gamma": "failed"}


def test_a_long_job_keeps_its_lease(lab: RemoteLab) -> None:
    lab.start(lease=0.5, seconds={"ping": 1.5})
    lab.start(lease=0.5, seconds={"ping": 1.5})

    assert lab.carry_out().state == "done"


def test_results_wait_while_no_database_answers(lab: RemoteLab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.start(steps=10, seconds={"deploy": 2})
    jid = lab.queue(Operation.DEPLOY)
    until(lambda: lab.output(lab.job(jid)), "it has begun")
    transaction, gone = db.transaction, threading.Event()

    def unavailable(*arguments: Any) -> Any:
        if gone.is_set() and threading.current_thread().name.startswith(("job-", "remote-")):
            raise errors.Unavailable("the database cannot be reached at the moment")
        return transaction(*arguments)

    monkeypatch.setattr(db, "transaction", unavailable)
    gone.set()
    before = len(lab.output(lab.job(jid)))
    # Longer than it takes: it ends while nothing can be written.
    threading.Event().wait(2.5)
    assert lab.job(jid).state == "running" and len(lab.output(lab.job(jid))) <= before + 6
    gone.clear()
    job = lab.ended(jid)

    assert job.state == "done" and len(lab.output(job)) == 3 * 10 * 2


def test_connections_that_break_in_the_middle_lose_nothing(lab: RemoteLab) -> None:
    lab.start(steps=40, seconds={"deploy": 2})
    jid = lab.queue(Operation.DEPLOY)

    def pieces() -> int:
        # What the test asks breaks as well.
        with suppress(errors.Unavailable):
            return len(lab.output(lab.job(jid)))
        return 0

    for _ in range(4):
        before = pieces()
        until(lambda before=before: pieces() > before, "output comes")
        lab.break_connections()
    until(pieces, "the test has a connection")
    job = lab.ended(jid)

    assert job.state == "done" and len(lab.output(job)) == 3 * 40 * 2


def test_a_job_whose_lease_ends_while_no_database_answers_is_cancelled(
    lab: RemoteLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = FakeExecutor({"hosts": HOSTS, "seconds": {"ping": 60}}, lab.home)
    lab.start(executor, lease=1)
    jid = lab.queue()
    lab.is_running(jid)
    until(lambda: executor._runs, "it has begun")
    transaction, reading, gone = db.transaction, db.reading, threading.Event()

    def ask(what: Any) -> Any:
        def unavailable(*arguments: Any) -> Any:
            if gone.is_set() and threading.current_thread().name.startswith(("job-", "remote-")):
                raise errors.Unavailable("the database cannot be reached at the moment")
            return what(*arguments)

        return unavailable

    monkeypatch.setattr(db, "transaction", ask(transaction))
    monkeypatch.setattr(db, "reading", ask(reading))
    gone.set()
    until(lambda: all(run.over for run in executor._runs), "its run is cancelled")
    assert lab.job(jid).state == "running"
    gone.clear()

    assert lab.ended(jid).error == "the worker that carried this out was lost"


# The end of the worker


def test_a_runner_that_is_stopped_lets_jobs_end_and_takes_no_new_ones(lab: RemoteLab) -> None:
    runner = lab.start(seconds={"ping": 0.5}, patience=20)
    jid = lab.queue()
    lab.is_running(jid)
    runner.stop()
    later = lab.queue()
    runner.join(20)

    assert lab.job(jid).state == "done" and lab.job(later).state == "queued"


def test_jobs_that_take_too_long_end_when_the_runner_does(lab: RemoteLab) -> None:
    runner = lab.start(seconds={"deploy": 60}, patience=0.3)
    jid = lab.queue(Operation.DEPLOY)
    lab.is_running(jid)
    runner.stop()
    runner.join(20)
    job = lab.job(jid)

    assert (job.state, job.error) == ("failed", "the worker was stopped") and lab.held() == []


# The inventory


def hosts_and_error() -> tuple[dict[str, list[str]], str | None]:
    with db.transaction() as session:
        stamp = session.get(RemoteInventory, 1)
        return {host.name: host.groups for host in session.query(RemoteHost)}, stamp.error if stamp else "not read"


def test_the_inventory_is_read_at_the_start_and_again(lab: RemoteLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labctl.remote.runner.INVENTORY_EVERY", 0.05)
    lab.start(groups={"web": ["alpha"]})
    until(lambda: hosts_and_error()[1] is None, "it was read")
    assert hosts_and_error()[0] == {"alpha": ["fake", "web"], "beta": ["fake"], "gamma": ["fake"]}

    lab.faults(hosts=["delta"])
    until(lambda: set(hosts_and_error()[0]) == {"delta", "alpha"}, "it was read again")
    lab.faults(hosts_error="hosts.ini is gone")
    until(lambda: hosts_and_error()[1] == "hosts.ini is gone", "what is wrong is known")
    assert "delta" in hosts_and_error()[0]


def test_that_the_inventory_cannot_be_read_is_a_warning_once_for_each_reason(
    lab: RemoteLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("labctl.remote.runner.INVENTORY_EVERY", 0.01)
    monkeypatch.setattr("labctl.remote.runner.INVENTORY_STAMP", 0.01)
    caplog.set_level("INFO", "labctl.remote.runner")

    def stamp() -> datetime | None:
        with db.transaction() as session:
            found = session.get(RemoteInventory, 1)
            return found.read if found else None

    def told() -> list[tuple[str, str, Any]]:
        found = [record for record in caplog.records if record.message.startswith("inventory_")]
        return [(record.levelname, record.message, getattr(record, "reason", None)) for record in found]

    lab.start()
    expected = [("INFO", "inventory_read", None)]
    for reason in ("hosts.ini is gone", "hosts.ini is malformed"):
        lab.faults(hosts_error=reason)
        expected.append(("WARNING", "inventory_failed", reason))
        until(lambda: told() == expected, f"{reason}: that is told")
        for _ in range(3):
            before = stamp()
            until(lambda: stamp() != before, "it was tried again")  # noqa: B023
    lab.faults()
    until(lambda: told() == [*expected, ("INFO", "inventory_read", None)], "it can be read again")


# Tasks


def test_a_rolling_restart_goes_through_the_hosts_batch_by_batch(lab: RemoteLab) -> None:
    lab.start()
    options = {"service": "nginx", "batch": 2, "health": "echo fine"}
    arguments = {"taskname": "rolling_restart", "tasktype": "rolling", "taskopts": options}
    job = lab.carry_out(Operation.TASK, arguments=arguments)

    assert job.state == "done" and set(lab.hosts(job).values()) == {"changed"}
    assert lab.output(job, "gamma") == [
        {"status": 0, "name": "restart nginx (batch 2 of 2)", "return_data": ""},
        {"status": 5, "name": "restart nginx (batch 2 of 2)", "return_data": "restarted"},
        {"status": 0, "name": "check nginx (batch 2 of 2)", "return_data": ""},
        {"status": 1, "name": "check nginx (batch 2 of 2)", "return_data": "fine"},
    ]


def test_a_rolling_restart_stops_at_the_first_batch_that_fails(lab: RemoteLab) -> None:
    lab.start(failing=["beta"])
    job = lab.carry_out(Operation.TASK)

    assert (job.state, job.error) == ("failed", "2 of 3 remote host(s) got task errors")
    assert lab.hosts(job) == {"alpha": "changed", "beta": "failed", "gamma": "failed"}
    assert lab.output(job, "gamma") == [
        {"status": 3, "message": "not begun", "name": "end", "return_data": "not begun"}
    ]


def test_the_service_of_a_rolling_restart_is_in_lower_case_as_with_the_operation(lab: RemoteLab) -> None:
    lab.start()
    arguments = {"taskname": "rolling_restart", "tasktype": "rolling", "taskopts": {"service": " NginX "}}
    job = lab.carry_out(Operation.TASK, ["alpha"], arguments)

    assert job.state == "done" and lab.output(job)[0]["name"] == "restart nginx (batch 1 of 1)"


@pytest.mark.parametrize("options", [{"service": ""}, {"service": "x", "batch": 0}, {"service": "x", "color": "red"}])
def test_a_task_that_does_not_like_its_options_fails_with_its_words(lab: RemoteLab, options: dict[str, Any]) -> None:
    lab.start()
    arguments = {"taskname": "rolling_restart", "tasktype": "rolling", "taskopts": options}
    job = lab.carry_out(Operation.TASK, arguments=arguments)

    assert job.state == "failed" and job.error.startswith("got unexpected error, ValueError: ")
    assert lab.output(job) == []


def test_a_task_that_waits_is_cancelled_at_once(lab: RemoteLab) -> None:
    lab.start(unreachable=["alpha"])
    lab.faults(unreachable=[])
    options = {"service": "nginx", "health": "exit 1", "interval": 3000}
    arguments = {"taskname": "rolling_restart", "tasktype": "rolling", "taskopts": options}
    jid = lab.queue(Operation.TASK, arguments=arguments)
    until(lambda: len(lab.output(lab.job(jid), "alpha")) == 3, "it checks the first host")
    lab.cancel(jid)
    job = lab.ended(jid, 5)

    assert (job.state, job.error) == ("cancelled", "cancelled by operator")


def test_a_task_is_cancelled_in_the_middle_of_an_operation_whatever_errors_it_catches(lab: RemoteLab) -> None:
    lab.tasks["stubborn"] = Stubborn
    executor = FakeExecutor({"hosts": HOSTS}, lab.home)
    lab.start(executor)
    jid = lab.queue(Operation.TASK, arguments={"taskname": "stubborn", "tasktype": "x", "taskopts": {}})
    until(lambda: executor._runs, "it has begun")
    lab.cancel(jid)

    assert lab.ended(jid, 5).state == "cancelled"
    until(lambda: all(run.over for run in executor._runs), "its operation is cancelled")


def test_a_task_reaches_no_other_hosts_than_its_own(lab: RemoteLab) -> None:
    lab.tasks["greedy"] = Greedy
    lab.start()
    job = lab.carry_out(Operation.TASK, ["alpha"], {"taskname": "greedy", "tasktype": "x", "taskopts": {}})

    assert job.error == "got executor error, not a host of this task: beta"


def test_a_task_that_this_worker_does_not_have_fails(lab: RemoteLab) -> None:
    lab.start()
    job = lab.carry_out(Operation.TASK, arguments={"taskname": "none", "tasktype": "x", "taskopts": {}})

    assert job.error == "got executor error, this worker has no task none"


class Stubborn(Task):
    """Catches every error."""

    type = "x"

    def __init__(self, options: Mapping[str, Any]) -> None:
        pass

    def run(self, hosts: Sequence[str], operate: Operate) -> Iterator[Result]:
        while True:
            try:
                yield from operate(Operation.EXECUTE, hosts, command="sleep 60")
            except Exception:
                continue


class Greedy(Stubborn):
    """Wants hosts that nobody gave it."""

    def run(self, hosts: Sequence[str], operate: Operate) -> Iterator[Result]:
        yield from operate(Operation.PING, ["alpha", "beta"])


class Odd(FakeExecutor):
    """Says what it is told, on every host."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({"hosts": HOSTS}, Path("/nonexistent"))
        self.values = values

    def _result(self, options: Any, order: Order, host: str, seconds: float) -> tuple[float, Result]:
        return 0, Result(host, Status.CHANGED, self.values)


class Hanging(FakeExecutor):
    """Begins nothing, and does not come back."""

    def __init__(self) -> None:
        super().__init__({"hosts": HOSTS}, Path("/nonexistent"))
        self.go_on = threading.Event()

    def begin(self, order: Order) -> Run:
        self.go_on.wait(60)
        return super().begin(order)
