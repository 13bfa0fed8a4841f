"""What becomes of the files of a session: fetched by a task, once each, over whatever happens to workers."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from labctl import queue
from labctl.db import transaction
from labctl.events.models import Event
from labctl.maintenance import downloads, fetching, tasks
from labctl.maintenance.models import MaintenanceDownload, MaintenanceSession, MaintenanceStep
from labctl.maintenance.workflow import Progress
from labctl.settings import Settings
from tests.acceptance.lab import until

from .factories import make_session
from .web import CONTENT, SHA256, Answer, Web, hangs, running, waits

URL = "https://files.example.com/SW1.tar.gz"
DOWNLOADED = ("maintenance.downloaded", "maintenance.download_failed")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, home=str(tmp_path), maintenance_private_urls=True)


@pytest.fixture
def web() -> Iterator[Web]:
    with running() as server:
        yield server


def make(session: Session, *urls: str, **changes: Any) -> str:
    """Add a session that needs files; gives its id."""
    row = make_session(session, **changes)
    for position, url in enumerate(urls):
        plain, sha256 = fetching.split(url)
        session.add(MaintenanceDownload(session_id=row.id, position=position, url=plain, sha256=sha256))
    session.flush()
    return row.id


def row(session: Session, sid: str, position: int = 0) -> MaintenanceDownload:
    session.expire_all()
    return session.get_one(MaintenanceDownload, (sid, position))


def fetch(settings: Settings) -> None:
    tasks.download.function(settings)


def files(settings: Settings) -> list[str]:
    home = Path(settings.home)
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


# The task


def test_the_task_comes_round_by_itself_and_is_woken_by_a_beginning(
    session: Session, statements: Callable[[], Any]
) -> None:
    assert tasks.download.cron == "* * * * * */5"
    sid = make(session, URL)
    downloads.begin(session, sid)
    waiting = session.execute(text("SELECT task_name FROM procrastinate_jobs")).scalars().all()
    assert waiting == ["maintenance.download"]
    with statements() as sent:
        downloads.begin(session, sid)
    assert len(sent) == 1


def test_files_are_fetched_and_their_paths_known_by_their_urls(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    web.answers["/ESW1.tar.gz"] = Answer(body=b"firmware")
    first, second = web.url(), web.url("/ESW1.tar.gz?x=1")
    sid = make(session, f"{first}#sha256={SHA256}", second)
    assert downloads.progress(session, sid) == (Progress.NONE, "")
    downloads.begin(session, sid)
    assert downloads.progress(session, sid) == (Progress.RUNNING, "")
    fetch(settings)
    assert downloads.progress(session, sid) == (Progress.DONE, "")
    paths = downloads.paths(session, sid)
    assert {url: Path(path).read_bytes() for url, path in paths.items()} == {first: CONTENT, second: b"firmware"}
    assert [Path(path).name for path in paths.values()] == ["SW1.tar.gz", "ESW1.tar.gz"]
    assert all(Path(path).is_relative_to(Path(settings.home) / "maintenance" / sid) for path in paths.values())
    one = row(session, sid)
    assert (one.state, one.size, one.finished, one.lease_holder) == ("done", len(CONTENT), stopped_clock(), None)


def test_the_session_is_looked_at_as_soon_as_a_file_is_there(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    later = stopped_clock() + timedelta(hours=1)
    sid, failed = make(session, web.url(), due=later), make(session, web.url(), due=None)
    for each in (sid, failed):
        downloads.begin(session, each)
    fetch(settings)
    session.expire_all()
    assert session.get_one(MaintenanceSession, sid).due == stopped_clock()
    assert session.get_one(MaintenanceSession, failed).due is None


def test_what_happened_is_told(session: Session, settings: Settings, web: Web) -> None:
    sid = make(session, web.url(), web.url("/missing"))
    downloads.begin(session, sid)
    fetch(settings)
    steps = session.scalars(select(MaintenanceStep.text).order_by(MaintenanceStep.text)).all()
    assert steps == [
        f"could not download {web.url('/missing')}: the server answered 404",
        f"downloaded {web.url()} ({len(CONTENT)} bytes)",
    ]
    events = session.scalars(select(Event).where(Event.subject == f"maintenance/{sid}")).all()
    assert {event.kind for event in events} == {"maintenance.downloaded", "maintenance.download_failed"}


def test_what_a_url_asks_is_told_to_nobody(
    session: Session, settings: Settings, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    web.answers["/ESW1.tar.gz"] = Answer(body=b"firmware")
    sid = make(session, web.url("/ESW1.tar.gz?token=geheim"), web.url("/missing?token=geheim"))
    downloads.begin(session, sid)
    fetch(settings)
    _, reason = downloads.progress(session, sid)
    assert reason == f"{web.url('/missing')}?*** could not be downloaded: the server answered 404"
    steps = session.scalars(select(MaintenanceStep.text).where(MaintenanceStep.session_id == sid)).all()
    data = session.scalars(select(Event.data).where(Event.kind.in_(DOWNLOADED))).all()
    logged = [vars(record) for record in caplog.records if record.name.startswith("labctl")]
    assert (len(steps), len(data)) == (2, 2) and "?***" in str(data)
    assert "geheim" not in f"{steps} {data} {logged}"


def test_files_that_nobody_has_asked_for_yet_are_not_fetched(session: Session, settings: Settings, web: Web) -> None:
    make(session, web.url())
    fetch(settings)
    assert web.requests == []


@pytest.mark.parametrize("changes", [{"deleted": "now"}, {"state": "MAINTENANCE_FAILED"}])
def test_files_of_a_session_that_does_not_go_on_are_not_fetched(
    session: Session, settings: Settings, web: Web, stopped_clock: Any, changes: dict[str, Any]
) -> None:
    sid = make(session, web.url())
    downloads.begin(session, sid)
    for name, value in changes.items():
        setattr(session.get_one(MaintenanceSession, sid), name, stopped_clock() if value == "now" else value)
    session.flush()
    fetch(settings)
    assert web.requests == []


# What goes wrong


def test_what_cannot_pass_fails_at_once(session: Session, settings: Settings, web: Web) -> None:
    sid = make(session, f"{web.url()}#sha256={'0' * 64}")
    downloads.begin(session, sid)
    fetch(settings)
    state, reason = downloads.progress(session, sid)
    assert state == Progress.FAILED
    assert reason == f"{web.url()} could not be downloaded: its sha256 is {SHA256}, not {'0' * 64}"
    assert len(web.requests) == 1
    assert files(settings) == []
    fetch(settings)
    assert len(web.requests) == 1


def test_a_file_that_is_too_large_fails(session: Session, settings: Settings, web: Web) -> None:
    sid = make(session, web.url())
    downloads.begin(session, sid)
    fetch(replace(settings, maintenance_download_limit=10))
    assert "larger than 10 bytes" in downloads.progress(session, sid)[1]


def test_private_addresses_are_reached_only_by_the_setting(session: Session, settings: Settings, web: Web) -> None:
    sid = make(session, web.url())
    downloads.begin(session, sid)
    fetch(replace(settings, maintenance_private_urls=False))
    assert "not a public address" in downloads.progress(session, sid)[1]
    assert web.requests == []


def test_what_may_pass_is_tried_a_few_times_more_and_more_seldom(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    web.answers["/SW1.tar.gz"] = Answer(503)
    sid = make(session, web.url())
    downloads.begin(session, sid)
    began = stopped_clock()
    tried = []
    while downloads.progress(session, sid)[0] == Progress.RUNNING:
        fetch(settings)
        if len(web.requests) > len(tried):
            tried.append((stopped_clock() - began).total_seconds())
        stopped_clock.advance(seconds=1)
    assert tried == [0, 2, 6, 14]
    assert downloads.progress(session, sid) == (
        Progress.FAILED,
        f"{web.url()} could not be downloaded: the server answered 503",
    )


def test_what_passed_is_forgotten(session: Session, settings: Settings, web: Web, stopped_clock: Any) -> None:
    good, web.answers["/SW1.tar.gz"] = web.answers["/SW1.tar.gz"], Answer(503)
    sid = make(session, web.url())
    downloads.begin(session, sid)
    fetch(settings)
    assert row(session, sid).reason == "the server answered 503"
    web.answers["/SW1.tar.gz"] = good
    stopped_clock.advance(seconds=2)
    fetch(settings)
    assert (row(session, sid).state, row(session, sid).reason) == ("done", None)
    assert len(files(settings)) == 1


def test_a_continued_session_fetches_again_what_failed_and_nothing_else(
    session: Session, settings: Settings, web: Web
) -> None:
    sid = make(session, web.url(), web.url("/missing"))
    downloads.begin(session, sid)
    fetch(settings)
    web.answers["/missing"] = Answer(body=b"found")
    downloads.again(session, sid)
    assert downloads.progress(session, sid) == (Progress.RUNNING, "")
    fetch(settings)
    assert downloads.progress(session, sid) == (Progress.DONE, "")
    assert [request.path for request in web.requests].count("/SW1.tar.gz") == 1


# Workers that come and go


@pytest.fixture
def slow(committed: Engine, settings: Settings, web: Web) -> Iterator[Callable[..., str]]:
    """Begin to fetch a file that does not come to its end before the gate is opened; gives the session's id."""
    threads = []

    def begin(then: Any = waits) -> str:
        web.answers["/SW1.tar.gz"] = Answer(length=str(len(CONTENT)), then=then)
        with transaction() as session:
            sid = make(session, web.url())
            downloads.begin(session, sid)
        thread = threading.Thread(target=fetch, args=(settings,))
        thread.start()
        threads.append(thread)
        assert web.waited_for.wait(20)
        return sid

    yield begin
    web.gate.set()
    web.closing.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def state(sid: str) -> str:
    with transaction() as session:
        return row(session, sid).state


def test_no_transaction_is_open_while_a_file_comes(
    committed: Engine, settings: Settings, web: Web, slow: Callable[..., str]
) -> None:
    sid = slow()
    with committed.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert connection.execute(text(query)).scalar_one() == 0
        connection.rollback()
    assert state(sid) == "running"
    web.gate.set()
    until(lambda: state(sid) == "done", "the file is there")


def test_a_lease_is_renewed_while_a_file_comes(
    committed: Engine, settings: Settings, web: Web, slow: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shorter than a setting may say: it would have run out long ago.
    object.__setattr__(settings, "worker_stalled_after", 1)
    sid = slow()
    with transaction() as session:
        began = row(session, sid).lease_until
    assert began is not None

    def renewed() -> bool:
        with transaction() as session:
            end = row(session, sid).lease_until
            return end is not None and end > began + timedelta(seconds=1.5)

    until(renewed, "the lease is renewed")
    with transaction() as session:
        assert downloads.claim(session, "another", 5, 30) == []
    web.gate.set()
    until(lambda: state(sid) == "done", "the file is there")


def test_one_worker_looks_at_a_time_and_sees_what_comes_meanwhile(
    committed: Engine, settings: Settings, web: Web, slow: Callable[..., str]
) -> None:
    first = slow()
    fetch(settings)
    assert len(web.requests) == 1
    web.answers["/other"] = Answer(body=b"other")
    with transaction() as session:
        second = make(session, web.url("/other"))
        downloads.begin(session, second)
    until(lambda: state(second) == "done", "the other file is there")
    assert state(first) == "running"


def test_a_worker_that_stops_leaves_the_rest_to_the_next(
    committed: Engine, settings: Settings, web: Web, slow: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sid = slow()
    stopping = threading.Event()
    monkeypatch.setattr(queue, "stopping", stopping)
    stopping.set()
    until(lambda: state(sid) == "waiting", "it is given back")
    with transaction() as session:
        one = row(session, sid)
        assert (one.failures, one.lease_holder) == (0, None)
    until(lambda: files(settings) == [], "nothing is left")
    stopping.clear()
    web.answers["/SW1.tar.gz"] = Answer(body=CONTENT)
    until(lambda: fetch(settings) or state(sid) == "done", "the next worker has fetched it")


def test_a_session_that_is_deleted_ends_its_downloads(
    committed: Engine, settings: Settings, web: Web, slow: Callable[..., str]
) -> None:
    sid = slow(hangs)
    with transaction() as session:
        session.delete(session.get_one(MaintenanceSession, sid))
    held = downloads.Held("nobody", 1, sid, 0, web.url(), None, 0)
    with transaction() as session:
        assert downloads.renew(session, [held], 30) == set()
        downloads.done(session, held, "/x", 1, SHA256)
        downloads.failed(session, held, "x", passing=False)
    with transaction() as session:
        assert session.scalars(select(MaintenanceStep)).all() == []
    assert files(settings) != []
    tasks.tidy.function(settings)
    assert files(settings) == []


def test_a_worker_that_was_given_up_for_dead_changes_nothing(
    session: Session, settings: Settings, web: Web, stopped_clock: Any
) -> None:
    sid = make(session, web.url())
    downloads.begin(session, sid)
    (old,) = downloads.claim(session, "dead", 5, 30)
    assert downloads.claim(session, "eager", 5, 30) == []
    stopped_clock.advance(seconds=31)
    assert downloads.renew(session, [old], 30) == set()
    fetch(settings)
    path = downloads.paths(session, sid)[web.url()]
    downloads.done(session, old, "/elsewhere", 1, "")
    downloads.failed(session, old, "late", passing=False)
    downloads.let_go(session, old)
    assert downloads.paths(session, sid)[web.url()] == path
    # What it has written lies elsewhere.
    assert f"/{old.place}/" not in path


def test_what_a_dead_worker_has_left_is_removed_by_the_next(session: Session, settings: Settings, web: Web) -> None:
    sid = make(session, web.url())
    downloads.begin(session, sid)
    left = Path(settings.home) / "maintenance" / sid / "0-0"
    left.mkdir(parents=True)
    (left / ".SW1.tar.gz.part").write_bytes(b"half")
    fetch(settings)
    assert [name.rpartition("/")[2] for name in files(settings)] == ["SW1.tar.gz"]


# Forgetting


def test_files_of_sessions_that_are_known_no_more_are_removed_and_nothing_else(
    session: Session, settings: Settings, web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tasks.tidy.function(settings)
    sid = make(session, web.url())
    downloads.begin(session, sid)
    fetch(settings)
    home = Path(settings.home) / "maintenance"
    for name in ("11111111-1111-1111-8111-111111111111", "somebody-elses"):
        (home / name).mkdir()
        (home / name / "file").write_text("x")
    tasks.tidy.function(settings)
    assert sorted(path.name for path in home.iterdir()) == [sid, "somebody-elses"]
    assert tasks.tidy.cron == "* * * * *"


def test_sessions_are_forgotten_after_their_time_unless_a_host_is_out_of_service(
    session: Session, settings: Settings, stopped_clock: Any
) -> None:
    now = stopped_clock()
    old, new = now - timedelta(days=91), now - timedelta(days=89)
    gone = make(session, URL, state="MAINTENANCE_DONE", finished=old)
    kept = [
        make(session, state="MAINTENANCE_DONE", finished=new),
        make(session, state="START_MAINTENANCE", entered=old),
        make_session(session, ["alpha"], state="MAINTENANCE_FAILED", finished=old).id,
    ]
    session.execute(text("UPDATE maintenance_hosts SET cordoned = true"))
    tasks.purge.function(settings)
    left = session.scalars(select(MaintenanceSession.id)).all()
    assert sorted(left) == sorted(kept) and gone not in left
    assert session.scalars(select(MaintenanceDownload)).all() == []
