"""How a run's status and its document follow from the counts of its jobs."""

from datetime import UTC, datetime
from itertools import product

import orjson
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from labctl.runs.models import Run
from labctl.runs.states import JobState, RunState
from tests.runs.reference import STATUSES, run_status


def test_the_database_derives_the_status_of_every_mix_of_jobs_as_the_contract_says(session: Session) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    mixes = list(product((0, 1, 2), repeat=len(STATUSES)))
    times = {"posted": at, "scheduled": at}
    runs = [
        {"name": str(number), "path": str(number), **times, **dict(zip(STATUSES, mix, strict=True))}
        for number, mix in enumerate(mixes)
    ]
    session.execute(insert(Run.__table__), runs)
    derived = dict(session.execute(select(Run.name, Run.status)).all())
    # By the table in the code as well, from which migrations are written.
    in_code = dict(session.execute(select(Run.name, Run.__table__.c.status.computed.sqltext)).all())
    texts = session.execute(select(Run.name, Run.document)).all()
    documents = {name: orjson.loads(text.replace("\x01", "http://lab/runs")) for name, text in texts}
    for number, mix in enumerate(mixes):
        jobs = [status for status, count in zip(STATUSES, mix, strict=True) for _ in range(count)]
        assert derived[str(number)] == in_code[str(number)] == run_status(jobs), mix
        shown = documents[str(number)]
        assert shown["status"] == run_status(jobs)
        assert shown["jobs_count"] == shown["results"]["total"] == len(jobs)
        assert {status: shown["results"][status] for status in STATUSES} == dict(zip(STATUSES, mix, strict=True))


def test_the_states_are_the_words_of_the_protocol() -> None:
    assert {str(state) for state in JobState} == set(STATUSES)
    assert {str(state) for state in RunState} == {
        *("empty", "queued", "running", "waiting", "unknown"),
        *("finished dead", "finished fail", "finished pass"),
    }
