"""The verbs of runs and jobs, and what follows from them: statuses, times, counts, events."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from labctl.errors import Conflict, NotFound
from labctl.events.models import Event
from labctl.runs import service
from labctl.runs.models import Job, Run
from labctl.runs.service import Report
from labctl.runs.states import JobState
from tests.runs import reference

NAME = "ada-2026-01-02_03:04:05-rados-main-distro-default-smithi"


def report(session: Session, job_id: str = "1", run: str = NAME, **changes: Any) -> str:
    return service.report_job(session, run, Report(changes, job_id), add_run=True)


def change(session: Session, job_id: str = "1", run: str = NAME, **changes: Any) -> None:
    service.update_job(session, run, job_id, Report(changes))


def find_run(session: Session, name: str = NAME) -> Run:
    return session.scalars(select(Run).where(Run.name == name).execution_options(populate_existing=True)).one()


def find_job(session: Session, job_id: str = "1") -> Job:
    return session.scalars(select(Job).where(Job.job_id == job_id).execution_options(populate_existing=True)).one()


REPORTS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.none() | st.sampled_from(reference.STATUSES),
        "success": st.sampled_from([None, True, False]),
        "owner": st.none(),
    },
)


@given(old=st.none() | st.sampled_from(reference.STATUSES), sent=REPORTS)
def test_a_report_gives_a_job_the_status_that_the_contract_says(old: str | None, sent: dict[str, Any]) -> None:
    given_ = sent | ({"status": JobState(sent["status"])} if sent.get("status") else {})
    assert service.job_status(JobState(old) if old else None, given_) == reference.job_status(old, sent)


NUMBERS = count()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    acts=st.lists(
        st.tuples(st.sampled_from(["report", "report", "change", "change", "remove"]), st.sampled_from("123"), REPORTS),
        max_size=14,
    )
)
def test_after_any_sequence_of_reports_changes_and_removals_a_run_counts_its_jobs_right(
    session: Session, acts: list[tuple[str, str, dict[str, Any]]]
) -> None:
    name, jobs = f"sequence {next(NUMBERS)}", dict[str, str]()
    service.add_run(session, name)
    for act, job_id, sent in acts:
        if act == "report" and job_id not in jobs:
            report(session, job_id, name, **sent)
            jobs[job_id] = reference.job_status(None, sent)
        elif act == "report":
            with pytest.raises(Conflict), session.begin_nested():
                report(session, job_id, name, **sent)
        elif job_id not in jobs:
            verb = change if act == "change" else service.remove_job
            arguments: Any = (session, job_id, name) if act == "change" else (session, name, job_id)
            with pytest.raises(NotFound):
                verb(*arguments)
        elif act == "change":
            change(session, job_id, name, **sent)
            jobs[job_id] = reference.job_status(jobs[job_id], sent)
        else:
            service.remove_job(session, name, job_id)
            del jobs[job_id]
        run = find_run(session, name)
        counted = [run.queued, run.pass_, run.running, run.waiting, run.fail, run.dead, run.unknown]
        assert counted == [list(jobs.values()).count(status) for status in reference.STATUSES]
        assert run.status == reference.run_status(jobs.values())


def test_a_run_takes_user_suite_branch_type_and_time_out_of_its_name(session: Session, stopped_clock: Any) -> None:
    service.add_run(session, NAME)
    run = find_run(session)
    assert (run.user_name, run.suite, run.branch, run.machine_type) == ("ada", "rados", "main", "smithi")
    assert run.scheduled == datetime(2026, 1, 2, 3, 4, 5).astimezone(UTC)
    assert run.posted == stopped_clock()


def test_a_run_whose_name_tells_nothing_was_scheduled_when_it_was_posted(session: Session, stopped_clock: Any) -> None:
    service.add_run(session, "some run")
    run = find_run(session, "some run")
    assert (run.user_name, run.suite, run.branch, run.machine_type) == ("", "", "", "")
    assert run.scheduled == run.posted == stopped_clock()


def test_the_job_that_says_suite_branch_or_type_corrects_the_run(session: Session) -> None:
    report(session, suite="rgw", branch="wip-a", machine_type="mira")
    run = find_run(session)
    assert (run.suite, run.branch, run.machine_type) == ("rgw", "wip-a", "mira")
    change(session, branch="wip-b", suite=None)
    run = find_run(session)
    assert (run.suite, run.branch, run.machine_type) == ("rgw", "wip-b", "mira")


@pytest.fixture
def steps(stopped_clock: Any) -> Iterator[datetime]:
    """Times a minute apart: each moves the clock."""

    def walk() -> Iterator[datetime]:
        while True:
            stopped_clock.advance(minutes=1)
            yield stopped_clock()

    return walk()


def test_a_job_starts_when_it_goes_from_queued_to_running_and_the_run_with_its_first_job(
    session: Session, steps: Iterator[datetime]
) -> None:
    posted = next(steps)
    report(session, "1", status="queued")
    report(session, "2", status="queued")
    assert find_job(session, "1").started is None
    assert find_run(session).started is None
    first = next(steps)
    change(session, "1", status="running")
    second = next(steps)
    change(session, "2", status="running")
    last = next(steps)
    change(session, "1", status="running", owner="ada")
    assert (find_job(session, "1").started, find_job(session, "2").started) == (first, second)
    assert (find_job(session, "1").posted, find_job(session, "1").updated) == (posted, last)
    run = find_run(session)
    assert (run.posted, run.started, run.updated) == (posted, first, last)


def test_a_job_that_is_first_heard_of_running_has_started(session: Session, stopped_clock: Any) -> None:
    report(session, status="running")
    assert find_job(session).started == find_run(session).started == stopped_clock()


def test_a_job_that_is_queued_again_starts_again(session: Session, steps: Iterator[datetime]) -> None:
    next(steps)
    report(session, status="running")
    next(steps)
    change(session, status="queued")
    again = next(steps)
    change(session, status="running")
    assert find_job(session).started == again


def test_the_time_that_a_client_says_is_that_of_job_and_run(session: Session, stopped_clock: Any) -> None:
    report(session)
    said = stopped_clock() - timedelta(hours=1)
    service.update_job(session, NAME, "1", Report({}, updated=said))
    assert find_job(session).updated == find_run(session).updated == said


@pytest.mark.parametrize(("status", "kept"), [("queued", 50), ("waiting", 100), ("running", 100), ("dead", 100)])
def test_a_priority_changes_only_while_the_job_is_queued(session: Session, status: str, kept: int) -> None:
    report(session, status=JobState(status), priority=100)
    change(session, priority=50, owner="ada")
    job = find_job(session)
    assert job.priority == kept
    assert find_run(session).priority == kept


def test_a_job_without_an_id_gets_one_that_no_other_job_of_the_run_has(session: Session) -> None:
    made = {service.report_job(session, NAME, Report({}), add_run=True) for _ in range(3)}
    assert len(made) == 3
    assert set(session.scalars(select(Job.job_id))) == made


def test_an_id_that_was_made_does_not_collide_with_one_that_somebody_chose(session: Session) -> None:
    first = int(service.report_job(session, NAME, Report({}), add_run=True))
    chosen = {str(number) for number in range(first, first + 50)}
    for job_id in chosen - {str(first)}:
        report(session, job_id)
    assert service.report_job(session, NAME, Report({}), add_run=True) not in chosen


def test_a_job_of_an_unknown_run_is_refused_where_runs_are_not_added(session: Session) -> None:
    with pytest.raises(NotFound):
        service.report_job(session, NAME, Report({}, "1"), add_run=False)
    assert session.scalar(select(func.count()).select_from(Run)) == 0


def test_removing_a_run_removes_its_jobs_and_no_others(session: Session) -> None:
    report(session, "1")
    report(session, "2", run="another")
    service.remove_run(session, NAME)
    assert session.scalars(select(Run.name)).all() == ["another"]
    assert session.scalars(select(Job.job_id)).all() == ["2"]
    with pytest.raises(NotFound, match="non-existent run"):
        service.remove_run(session, NAME)


def test_a_run_that_was_removed_may_come_back_with_the_same_jobs(session: Session) -> None:
    report(session, "1", status=JobState.PASS)
    service.remove_run(session, NAME)
    report(session, "1", status=JobState.QUEUED)
    assert find_run(session).status == "queued"


def test_each_change_writes_one_event_and_a_refused_one_none(session: Session) -> None:
    report(session, status=JobState.QUEUED)
    change(session, status=JobState.RUNNING)
    with pytest.raises(Conflict), session.begin_nested():
        report(session)
    service.remove_job(session, NAME, "1")
    service.remove_run(session, NAME)
    events = session.execute(select(Event.kind, Event.subject, Event.data).order_by(Event.seq)).all()
    run, job = f"runs/{NAME}", f"runs/{NAME}/jobs/1"
    assert [tuple(event) for event in events] == [
        ("run.added", run, {}),
        ("job.added", job, {"status": "queued"}),
        ("job.updated", job, {"status": "running", "was": "queued"}),
        ("job.removed", job, {"status": "running"}),
        ("run.removed", run, {}),
    ]
