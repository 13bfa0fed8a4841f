"""The tasks of the worker's queue."""

from dataclasses import replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl.remote import running, tasks
from labctl.remote.models import RemoteJob
from labctl.remote.states import JobState
from labctl.settings import Settings

from .factories import make_job


def test_jobs_are_kept_for_as_long_as_the_setting_says(
    session: Session, settings: Settings, stopped_clock: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(tasks, "BATCH", 2)
    for _ in range(5):
        make_job(session)
    for taken in running.claim(session, "worker", 5, 30):
        running.finish(session, taken, state=JobState.DONE)
    kept = make_job(session)
    stopped_clock.advance(days=2)
    tasks.purge.function(replace(settings, remote_keep_days=3))
    assert len(session.scalars(select(RemoteJob.id)).all()) == 6
    tasks.purge.function(replace(settings, remote_keep_days=1))

    assert session.scalars(select(RemoteJob.id)).all() == [kept.id]


def test_to_wake_a_runner_where_there_is_none_is_no_error(settings: Settings) -> None:
    tasks.wake.function(settings)
