"""How actions go on: step by step, by jobs of the remote tree, over anything that happens between two looks."""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl import plugins
from labctl.events.models import Event
from labctl.maintenance import acting
from labctl.maintenance.action import Action, Done, Operate, View, Wait
from labctl.maintenance.models import (
    MaintenanceAction,
    MaintenanceDownload,
    MaintenanceHost,
    MaintenanceSession,
    MaintenanceStep,
)
from labctl.maintenance.states import ActionType
from labctl.maintenance.workflow import Progress
from labctl.remote import running, service
from labctl.remote.models import RemoteInventory, RemoteJob, RemoteJobHost, RemoteOutput
from labctl.remote.states import JobState, Operation

from .factories import make_inventory, make_session

HOSTS = ("alpha", "beta", "gamma")
PRE, HOST, CHECK, POST = ActionType.PRE, ActionType.HOST, ActionType.CHECK, ActionType.POST


class Odd(Action):
    """Does what a test says."""

    behaviour: ClassVar[Callable[[View], Any]] = staticmethod(lambda view: Done())
    timeout = 60

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        if metadata.get("wrong"):
            raise ValueError("wrong: it is")

    def next(self, view: View) -> Any:
        return type(self).behaviour(view)


@pytest.fixture(autouse=True)
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Odd]]:
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: Odd if name == "odd" else load(group, name))
    acting._kind.cache_clear()
    yield Odd
    Odd.behaviour = staticmethod(lambda view: Done())
    acting._kind.cache_clear()


class Lab:
    """A session whose actions are looked at when the test says so, and whose jobs end as it says."""

    def __init__(self, session: Session, clock: Any, *actions: Any, hosts: tuple[str, ...] = HOSTS) -> None:
        self.session = session
        self.clock = clock
        given = [{"plugin": each[0], "type": each[1], "metadata": each[2] if each[2:] else {}} for each in actions]
        self.row: MaintenanceSession = make_session(session, hosts, actions=given, created_by="ada")
        self.sid = self.row.id

    def begin(self, kind: ActionType, *hosts: str) -> None:
        for host in hosts or ("",):
            acting.begin(self.session, self.sid, kind, host)

    def look(self, **advance: float) -> bool:
        self.clock.advance(**advance)
        self.session.flush()
        changed = acting.advance(self.session, self.sid)
        self.session.expire_all()
        return changed

    def states(self) -> dict[tuple[str, str], str]:
        rows = self.session.scalars(select(MaintenanceAction).order_by(MaintenanceAction.attempt))
        return {(row.plugin, row.host): row.state for row in rows}

    def action(self, number: int = 0, host: str = "", attempt: int = 1) -> MaintenanceAction:
        return self.session.get_one(MaintenanceAction, (self.sid, number, host, attempt))

    def jobs(self) -> list[tuple[str, list[str]]]:
        """The commands (or else the operations) that wait, with their hosts."""
        open_ = self.session.scalars(select(RemoteJob).where(RemoteJob.state == "queued").order_by(RemoteJob.id))
        return [(job.arguments.get("command", job.operation), self.hosts_of(job)) for job in open_]

    def hosts_of(self, job: RemoteJob) -> list[str]:
        query = select(RemoteJobHost.host).where(RemoteJobHost.job_id == job.id).order_by(RemoteJobHost.position)
        return list(self.session.scalars(query))

    def job(self, host: str | None = None) -> RemoteJob:
        """The one job that waits."""
        query = select(RemoteJob).where(RemoteJob.state.in_(("queued", "running"))).order_by(RemoteJob.id)
        (job,) = (job for job in self.session.scalars(query) if host is None or self.hosts_of(job) == [host])
        return job

    def end(self, host: str | None = None, error: str = "", **output: Any) -> None:
        """Let the job that waits end."""
        job = self.job(host)
        status = 3 if error else 5
        for seq, name in enumerate(self.hosts_of(job), 1):
            chunk = json.dumps({"status": status, "rtc": int(bool(error)), "stdout": "", "stderr": "", **output})
            row = RemoteOutput(job_id=job.id, seq=seq, host=name, at=self.clock(), chunk=chunk)
            self.session.add(row)
        # A worker has begun it.
        job.state = "running"
        self.session.flush()
        running.end(self.session, [job.id], JobState.RUNNING, JobState.FAILED if error else JobState.DONE, error)
        self.session.expire_all()

    def make_busy(self, host: str) -> None:
        """Let somebody else apply a role there."""
        wanted = service.Wanted(Operation.DEPLOY, [host], {"role": "web", "partial": None, "extra_vars": {}})
        service.submit(self.session, wanted, asked_by="bob", address=None, timeout=60)

    def progress(self, kind: ActionType, host: str = "") -> tuple[Progress, str]:
        return acting.progress(self.session, self.sid)[kind, host]

    def steps(self) -> list[tuple[str | None, str]]:
        rows = self.session.scalars(select(MaintenanceStep).order_by(MaintenanceStep.id))
        return [(row.host, row.text) for row in rows]


@pytest.fixture
def lab(session: Session, stopped_clock: Any) -> Callable[..., Lab]:
    make_inventory(session, *HOSTS)
    session.add(RemoteInventory(id=1, read=stopped_clock()))
    session.flush()
    return lambda *actions, **options: Lab(session, stopped_clock, *actions, **options)


def command(line: str, kind: ActionType = HOST, **more: Any) -> tuple[str, ActionType, dict[str, Any]]:
    return "command", kind, {"command": line, **more}


def test_actions_run_one_after_the_other_by_the_names_of_their_plugins(lab: Callable[..., Lab]) -> None:
    session = lab(("dummy", HOST), command("second"), command("third"), ("check", HOST), command("never", PRE))
    session.begin(HOST, "alpha")
    assert session.look()
    # The check, then the commands in the order of the request, then the dummy.
    for wanted in ("ping", "second", "third"):
        assert session.jobs() == [(wanted, ["alpha"])]
        assert not session.look(seconds=1)
        session.end()
        assert session.look(seconds=1)
    assert session.jobs() == []
    assert session.progress(HOST, "alpha") == (Progress.DONE, "")
    assert session.progress(PRE) == (Progress.NONE, "")
    assert not session.look()


def test_hosts_go_on_beside_each_other(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"), command("two"))
    session.begin(HOST, "alpha", "beta")
    session.look()
    assert session.jobs() == [("one", ["alpha"]), ("one", ["beta"])]
    session.end("beta")
    session.look()
    assert session.jobs() == [("one", ["alpha"]), ("two", ["beta"])]


def test_what_runs_once_is_carried_out_on_all_hosts(lab: Callable[..., Lab]) -> None:
    session = lab(command("prepare", PRE), command("finish", POST))
    session.begin(PRE)
    session.look()
    assert session.jobs() == [("prepare", list(HOSTS))]
    session.end()
    session.look()
    assert session.progress(PRE) == (Progress.DONE, "")
    assert session.progress(POST) == (Progress.NONE, "")


def test_a_job_is_asked_for_by_maintenance_and_linked_to_its_action(lab: Callable[..., Lab]) -> None:
    session = lab(command("one", timeout=100))
    session.begin(HOST, "beta")
    session.look()
    job = session.job()
    assert (job.asked_by, job.key) == ("maintenance for ada", f"maintenance/{session.sid}/0/beta/1/command")
    assert job.timeout == 100
    assert session.action(0, "beta").jobs == [{"step": "command", "jid": job.jid}]
    ended = session.clock() + timedelta(seconds=5)
    session.clock.advance(seconds=5)
    session.end()
    session.look()
    linked = {"step": "command", "jid": job.jid, "ok": True, "error": "", "ended": ended.isoformat()}
    assert session.action(0, "beta").jobs == [linked]


def test_an_action_that_fails_ends_what_comes_after_it_on_its_host(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"), command("two"))
    session.begin(HOST, "alpha", "beta")
    session.look()
    session.end("alpha", error="1 of 1 remote host(s) got execute errors", stderr="no space left")
    session.look()
    reason = "command: 1 of 1 remote host(s) got execute errors: alpha: no space left"
    assert session.progress(HOST, "alpha") == (Progress.FAILED, reason)
    assert session.progress(HOST, "beta") == (Progress.RUNNING, "command")
    assert session.jobs() == [("one", ["beta"])]
    session.end("beta")
    session.look(seconds=10)
    assert session.jobs() == [("two", ["beta"])]
    assert session.action(1, "alpha").state == "waiting"


def test_actions_without_any_are_done(lab: Callable[..., Lab]) -> None:
    session = lab()
    session.begin(PRE)
    session.begin(HOST, "alpha")
    assert not session.look()
    assert session.progress(PRE) == session.progress(POST) == session.progress(HOST, "alpha") == (Progress.DONE, "")


def test_without_an_action_of_type_check_a_host_is_pinged(lab: Callable[..., Lab]) -> None:
    session = lab()
    assert session.progress(CHECK, "alpha") == (Progress.NONE, "")
    session.begin(CHECK, "alpha")
    session.look()
    assert session.jobs() == [("ping", ["alpha"])]
    assert session.action(-1, "alpha").plugin == "check"
    session.end()
    session.look()
    assert session.progress(CHECK, "alpha") == (Progress.DONE, "")


def test_an_action_of_type_check_stands_for_the_ping(lab: Callable[..., Lab]) -> None:
    session = lab(("check", CHECK, {"command": "am-i-well"}))
    session.begin(CHECK, "alpha")
    session.look()
    assert session.jobs() == [("am-i-well", ["alpha"])]


def test_to_begin_twice_is_to_begin_once(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"))
    session.begin(HOST, "alpha")
    session.look()
    session.begin(HOST, "alpha")
    session.end()
    session.look()
    session.begin(HOST, "alpha")
    assert not session.look()
    assert session.jobs() == [] and session.states() == {("command", "alpha"): "done"}


def test_what_a_lost_transaction_had_asked_for_is_not_asked_for_twice(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"))
    session.begin(HOST, "alpha")
    session.look()
    # The job is there, but nobody has written down that it is.
    row = session.action(0, "alpha")
    jid, row.jobs = row.jobs[0]["jid"], []
    session.session.flush()
    session.look(seconds=1)
    assert session.jobs() == [("one", ["alpha"])]
    assert [job["jid"] for job in session.action(0, "alpha").jobs] == [jid]


def test_a_wait_is_over_when_its_time_is(lab: Callable[..., Lab]) -> None:
    session = lab(("dummy", HOST, {"seconds": 10}))
    session.begin(HOST, "alpha")
    session.look()
    assert session.progress(HOST, "alpha") == (Progress.RUNNING, "dummy: for nothing")
    assert not session.look(seconds=9)
    assert session.look(seconds=1)
    assert session.progress(HOST, "alpha") == (Progress.DONE, "")


def test_a_check_asks_until_the_host_is_well(lab: Callable[..., Lab]) -> None:
    session = lab(("check", CHECK, {"retries": 3, "interval": 5}))
    session.begin(CHECK, "alpha")
    for _ in range(3):
        session.look(seconds=5)
        session.end(error="total 1 of 1 remote host(s) no response")
        session.look()
        assert session.progress(CHECK, "alpha")[0] == Progress.RUNNING
    session.look(seconds=5)
    session.end()
    session.look()
    assert session.progress(CHECK, "alpha") == (Progress.DONE, "")
    assert [job["step"] for job in session.action(0, "alpha").jobs] == [f"check-{number}" for number in (1, 2, 3, 4)]


def test_a_reboot_waits_for_another_boot_id(lab: Callable[..., Lab]) -> None:
    session = lab(("reboot", HOST))
    session.begin(HOST, "alpha")
    for boot_id in ("old", "", "old"):
        session.look(seconds=5)
        session.end(stdout=boot_id)
    session.look(seconds=5)
    session.end(error="1 of 1 remote host(s) got execute errors", rtc=None, stderr="unreachable")
    session.look(seconds=5)
    session.end(stdout="new")
    session.look()
    assert session.progress(HOST, "alpha") == (Progress.DONE, "")


@pytest.mark.parametrize("with_job", [True, False])
def test_an_action_that_takes_too_long_has_failed_and_its_job_is_ended(lab: Callable[..., Lab], with_job: bool) -> None:
    session = lab(command("sleep", timeout=30) if with_job else ("dummy", HOST, {"seconds": 99, "timeout": 30}))
    session.begin(HOST, "alpha")
    session.look()
    assert not session.look(seconds=29)
    assert session.look(seconds=1)
    name = "command" if with_job else "dummy"
    assert session.progress(HOST, "alpha") == (Progress.FAILED, f"{name}: timed out after 30 s")
    assert session.jobs() == []
    assert not session.look(seconds=100)


def test_what_ended_in_time_has_not_taken_too_long_if_nobody_looked(lab: Callable[..., Lab]) -> None:
    session = lab(command("one", timeout=30))
    session.begin(HOST, "alpha")
    session.look()
    session.end()
    session.look(seconds=1000)
    assert session.progress(HOST, "alpha") == (Progress.DONE, "")


def test_a_host_that_nobody_knows_fails_the_action(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"), hosts=("stranger",))
    session.begin(HOST, "stranger")
    session.look()
    state, reason = session.progress(HOST, "stranger")
    assert state == Progress.FAILED
    assert "stranger" in reason


def test_a_host_that_is_busy_is_waited_for(lab: Callable[..., Lab]) -> None:
    session = lab(("role", HOST, {"role": "web", "timeout": 60}))
    session.make_busy("alpha")
    session.begin(HOST, "alpha")
    session.look()
    state, reason = session.progress(HOST, "alpha")
    assert state == Progress.RUNNING
    assert "operate conflict: alpha is busy with deploy" in reason
    assert not session.look(seconds=1)
    session.end()
    assert session.look(seconds=2)
    assert session.progress(HOST, "alpha") == (Progress.RUNNING, "role")
    session.end()
    session.look()
    assert session.progress(HOST, "alpha") == (Progress.DONE, "")


def test_a_host_that_is_busy_too_long_fails_the_action(lab: Callable[..., Lab]) -> None:
    session = lab(("role", HOST, {"role": "web", "timeout": 10}))
    session.make_busy("alpha")
    session.begin(HOST, "alpha")
    for _ in range(6):
        session.look(seconds=2)
    assert session.progress(HOST, "alpha") == (Progress.FAILED, "role: timed out after 10 s")


def test_before_the_inventory_was_read_an_action_waits(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"))
    session.session.delete(session.session.get_one(RemoteInventory, 1))
    session.begin(HOST, "alpha")
    session.look()
    assert "inventory has not been read" in session.progress(HOST, "alpha")[1]
    session.session.add(RemoteInventory(id=1, read=session.clock()))
    session.look(seconds=3)
    assert session.jobs() == [("one", ["alpha"])]


def test_a_job_that_somebody_cancels_fails_the_action(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"))
    session.begin(HOST, "alpha")
    session.look()
    running.end(session.session, [session.job().id], JobState.QUEUED, JobState.CANCELLED, "cancelled by bob")
    session.look()
    assert session.progress(HOST, "alpha") == (Progress.FAILED, "command: cancelled by bob")


@pytest.mark.parametrize("error", [running.LOST, running.STOPPED])
def test_a_role_whose_worker_was_lost_is_applied_again(lab: Callable[..., Lab], error: str) -> None:
    here = lab(("role", HOST, {"role": "motd"}))
    here.begin(HOST, "alpha")
    here.look()
    first = here.job().jid
    here.end(error=error)
    here.look(seconds=1)

    assert here.job().jid != first
    here.end()
    here.look(seconds=1)
    assert here.progress(HOST, "alpha") == (Progress.DONE, "")


def test_a_job_that_somebody_deletes_fails_the_action(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"))
    session.begin(HOST, "alpha")
    session.look()
    session.session.delete(session.job())
    session.look()
    assert session.progress(HOST, "alpha") == (Progress.FAILED, "command: its job was deleted")


def raises(view: View) -> Any:
    raise RuntimeError("this is odd\0")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (raises, "RuntimeError: this is odd\N{REPLACEMENT CHARACTER}"),
        (lambda view: "anything", "it wanted 'anything', which is no step"),
        (lambda view: Operate("x", "nonsense", ("alpha",)), "'nonsense' is not a valid Operation"),
        (lambda view: Operate("x", "ping", ()), "must be 1 to"),
    ],
)
def test_a_plugin_that_does_not_behave_fails_its_action_and_nothing_else(
    lab: Callable[..., Lab], odd: type[Odd], behaviour: Any, reason: str
) -> None:
    odd.behaviour = staticmethod(behaviour)
    session = lab(("odd", HOST), command("one", HOST, hosts=["beta"]))
    session.begin(HOST, "alpha", "beta")
    odd.behaviour = staticmethod(lambda view: behaviour(view) if view.host == "alpha" else Done())
    session.look()
    state, told = session.progress(HOST, "alpha")
    assert state == Progress.FAILED
    assert reason in told
    assert session.jobs() == [("one", ["beta"])]


def test_a_plugin_that_wants_the_same_again_fails(lab: Callable[..., Lab], odd: type[Odd]) -> None:
    odd.behaviour = staticmethod(lambda view: Operate("again", "ping", ("alpha",)))
    session = lab(("odd", HOST))
    session.begin(HOST, "alpha")
    session.look()
    session.end()
    session.look()
    assert session.progress(HOST, "alpha") == (Progress.FAILED, "odd: it wanted again twice")


@pytest.mark.parametrize(("plugin", "metadata"), [("gone", {}), ("odd", {"wrong": True}), ("command", {})])
def test_a_plugin_that_is_no_more_or_has_changed_its_mind_fails(
    lab: Callable[..., Lab], plugin: str, metadata: Any
) -> None:
    session = lab((plugin, HOST, metadata))
    session.begin(HOST, "alpha")
    session.look()
    state, reason = session.progress(HOST, "alpha")
    assert state == Progress.FAILED
    assert any(word in reason for word in ("there is no", "wrong", "command"))


def test_an_action_sees_where_and_when_it_runs_and_what_became_of_what_it_wanted(
    lab: Callable[..., Lab], odd: type[Odd]
) -> None:
    seen: list[View] = []

    def look(view: View) -> Any:
        seen.append(view)
        return Operate("ask", "execute", ("beta",), {"command": "x"}) if not view.outcomes else Wait(60, "ever")

    odd.behaviour = staticmethod(look)
    session = lab(("odd", HOST))
    url = "https://files.example.com/SW1.tar.gz"
    file = MaintenanceDownload(session_id=session.sid, position=0, url=f"{url}#sha256=x", state="done", path="/x/SW1")
    session.session.add(file)
    session.begin(HOST, "beta")
    began = session.clock()
    session.look()
    session.end(stdout="hello")
    session.look(seconds=7)
    first, second = seen
    assert (first.host, first.hosts, first.downloads) == ("beta", HOSTS, {url: "/x/SW1"})
    assert (first.started, first.now, first.outcomes, first.attempt) == (began, began, (), 1)
    assert second.now == began + timedelta(seconds=7)
    (outcome,) = second.outcomes
    assert (outcome.step, outcome.ok, outcome.error, outcome.ended) == ("ask", True, "", began)
    assert outcome.outputs["beta"]["stdout"] == "hello"


@pytest.mark.parametrize("change", [{"paused": True}, {"state": "MAINTENANCE_FAILED"}, {"deleted": "now"}])
def test_a_session_that_stands_still_lets_what_runs_end_and_begins_nothing(
    lab: Callable[..., Lab], change: dict[str, Any]
) -> None:
    session = lab(command("one"), command("two"))
    session.begin(HOST, "alpha")
    session.look()
    assert acting.running(session.session, session.sid)
    for name, value in change.items():
        setattr(session.row, name, session.clock() if value == "now" else value)
    session.end()
    assert session.look()
    assert session.jobs() == []
    assert session.action(0, "alpha").state == "done"
    assert not acting.running(session.session, session.sid)
    assert not session.look(seconds=10)
    session.row.paused, session.row.state, session.row.deleted = False, "START_MAINTENANCE", None
    session.look()
    assert session.jobs() == [("two", ["alpha"])]


def test_another_attempt_at_a_host_begins_all_of_its_actions_anew(lab: Callable[..., Lab]) -> None:
    session = lab(("dummy", HOST, {"fail": 1}), command("one"), command("two"))
    session.begin(HOST, "alpha")
    session.look()
    session.end()
    session.look()
    session.end()
    session.look()
    assert session.progress(HOST, "alpha") == (Progress.FAILED, "dummy: it was told to fail")
    session.session.get_one(MaintenanceHost, (session.sid, "alpha")).attempt = 2
    session.session.flush()
    assert session.progress(HOST, "alpha") == (Progress.NONE, "")
    session.begin(HOST, "alpha")
    session.look()
    for line in ("one", "two"):
        assert session.jobs() == [(line, ["alpha"])]
        session.end()
        session.look()
    assert session.progress(HOST, "alpha") == (Progress.DONE, "")
    # What was is still to be seen.
    assert session.action(0, "alpha", 1).state == "failed"


def test_another_attempt_ends_what_is_left_of_the_one_before(lab: Callable[..., Lab]) -> None:
    session = lab(command("one"), command("two"))
    session.begin(HOST, "alpha")
    session.look()
    session.session.get_one(MaintenanceHost, (session.sid, "alpha")).attempt = 2
    session.session.flush()
    session.begin(HOST, "alpha")
    session.look()
    assert session.jobs() == [("one", ["alpha"])]
    assert session.job().key == f"maintenance/{session.sid}/0/alpha/2/command"
    rows = session.session.scalars(select(MaintenanceAction).where(MaintenanceAction.attempt == 1))
    assert [(row.number, row.state, row.reason) for row in rows] == [(0, "failed", "it was begun anew")]


def test_a_continued_session_does_what_failed_again_and_not_what_was_done(lab: Callable[..., Lab]) -> None:
    session = lab(command("one", PRE), ("dummy", PRE, {"fail": 1}), ("role", PRE, {"role": "r"}))
    session.begin(PRE)
    session.look()
    session.end()
    session.look()
    assert session.progress(PRE) == (Progress.FAILED, "dummy: it was told to fail")
    acting.again(session.session, session.sid)
    assert session.progress(PRE)[0] == Progress.RUNNING
    session.begin(PRE)
    session.look()
    assert session.jobs() == [("deploy", list(HOSTS))]
    session.end()
    session.look()
    assert session.progress(PRE) == (Progress.DONE, "")


def test_what_ran_while_a_session_had_failed_gets_time_when_it_is_continued(lab: Callable[..., Lab]) -> None:
    session = lab(("check", CHECK, {"timeout": 30, "interval": 1}))
    session.begin(CHECK, "alpha")
    session.look()
    session.end(error="no response")
    session.clock.advance(seconds=1000)
    acting.again(session.session, session.sid)
    session.look()
    assert session.jobs() == [("ping", ["alpha"])]


def test_everything_is_told(lab: Callable[..., Lab]) -> None:
    session = lab(("dummy", PRE), ("dummy", HOST, {"fail": True, "reason": "so it is"}))
    session.begin(PRE)
    session.look()
    session.begin(HOST, "alpha")
    session.look()
    assert session.steps() == [
        (None, "pre action dummy began"),
        (None, "pre action dummy is done"),
        ("alpha", "host action dummy began"),
        ("alpha", "host action dummy failed: so it is"),
    ]
    events = session.session.scalars(select(Event).where(Event.subject == f"maintenance/{session.sid}")).all()
    assert [event.kind.partition(".")[2] for event in sorted(events, key=lambda event: event.seq)] == [
        "action_started",
        "action_done",
        "action_started",
        "action_failed",
    ]
    assert events[-1].data["host"] == "alpha"


def test_a_look_costs_a_few_statements_however_many_jobs_there_are(
    lab: Callable[..., Lab], statements: Callable[[], Any]
) -> None:
    session = lab(("odd", HOST), command("one"))
    session.begin(HOST, *HOSTS)
    session.look()
    with statements() as sent:
        assert not session.look(seconds=1)
    assert len(sent) == 3
    for host in HOSTS:
        session.end(host)
    with statements() as sent:
        session.look()
    reads = [statement for statement in sent if statement.startswith("SELECT")]
    assert len(reads) == 6
