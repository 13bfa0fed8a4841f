"""The task that asks all nodes how they are."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from webtest import TestApp

from labctl.nodes import tasks
from labctl.settings import Settings
from tests.acceptance.lab import until

from .conftest import CREDENTIAL
from .servers import Storage
from .test_controllers import NEXT, next_host, node, register, state


def look(settings: Settings) -> None:
    tasks.check.function(settings)


def test_the_task_comes_round_every_ten_seconds() -> None:
    assert (tasks.check.name, tasks.check.cron) == ("nodes.check", "* * * * * */10")


def test_a_node_that_died_goes_out_after_three_looks_and_comes_back_by_itself(
    app: TestApp, settings: Settings, storage: Storage, stopped_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = storage.hosts(range(1, 3))
    register(app, first, second)
    storage.host(1, "failing")
    caplog.set_level(logging.INFO)
    for count in (1, 2, 3, 3):
        stopped_clock.advance(seconds=10)
        look(settings)
        assert state(app, first) == (count < 3, count)
        assert state(app, second) == (True, 0)
        assert node(app, first)["last_check"] == node(app, second)["last_check"] == str(stopped_clock.time)[:19]
    assert [next_host(app) for _ in range(3)] == [second] * 3
    storage.host(1)
    stopped_clock.advance(seconds=10)
    look(settings)
    assert state(app, first) == (True, 0)
    assert next_host(app) == first
    ours = [line for line in caplog.records if line.name.startswith("labctl.nodes")]
    assert [(line.getMessage(), line.__dict__["host"]) for line in ours] == [
        ("node_check_failed", first),
        ("node_check_failed", first),
        ("node_check_failed", first),
        ("node_out", first),
        ("node_back", first),
    ]
    # The library that asks has nothing to say.


def test_a_node_that_failed_to_register_comes_in_by_itself(app: TestApp, settings: Settings, storage: Storage) -> None:
    host = storage.host(1, "failing")
    register(app, host)
    look(settings)
    assert app.get(NEXT, status=404)
    storage.host(1)
    look(settings)
    assert next_host(app) == host


def test_a_failure_now_and_then_puts_nobody_out(app: TestApp, settings: Settings, storage: Storage) -> None:
    host = storage.host(1)
    register(app, host)
    for behaviour in ("failing", "failing", "well") * 2:
        storage.host(1, behaviour)
        look(settings)
    assert state(app, host) == (True, 0)


def test_without_nodes_nothing_is_asked_and_nothing_written(
    app: TestApp, settings: Settings, statements: Callable[[], Any]
) -> None:
    with statements() as sent:
        look(settings)
    assert len(sent) == 1


def test_a_look_costs_two_statements_however_many_nodes_there_are(
    app: TestApp, settings: Settings, storage: Storage, statements: Callable[[], Any]
) -> None:
    register(app, *storage.hosts(range(1, 30)))
    with statements() as sent:
        look(settings)
    assert len(sent) == 2


def test_many_nodes_are_asked_in_one_timeout(app: TestApp, settings: Settings, storage: Storage) -> None:
    well, silent = storage.hosts(range(1, 6)), storage.hosts(range(10, 40))
    register(app, *well, *silent)
    storage.hosts(range(10, 40), "silent")
    began = time.monotonic()
    look(replace(settings, health_check_timeout=1, health_check_retries=1))
    assert 1 <= time.monotonic() - began < 6
    healthy = {host for host, each in app.get("/api/nodes/").json.items() if each["healthy"]}
    assert healthy == set(well)


@pytest.fixture
def slow_look(committed_app: TestApp, settings: Settings, storage: Storage) -> Callable[[], threading.Thread]:
    """Begin a look at two nodes, of which the first does not answer before the gate is opened."""

    def begin() -> threading.Thread:
        committed_app.authorization = CREDENTIAL
        register(committed_app, *storage.hosts(range(1, 3)))
        storage.host(1, "slow")
        thread = threading.Thread(target=look, args=(settings,))
        thread.start()
        assert storage.waited_for.wait(20)
        until(lambda: storage.times_asked("127.0.0.2") == 2, "the other node is asked")
        return thread

    return begin


def test_what_happened_during_a_look_is_not_overwritten(
    committed_app: TestApp, storage: Storage, slow_look: Callable[[], threading.Thread]
) -> None:
    thread = slow_look()
    # It has answered the look that it is well.
    second = storage.host(2, "failing")
    register(committed_app, second)
    storage.gate.set()
    thread.join(20)
    assert state(committed_app, second) == (False, 0)


def test_a_node_that_is_removed_during_a_look_stays_away(
    committed_app: TestApp, storage: Storage, slow_look: Callable[[], threading.Thread]
) -> None:
    thread = slow_look()
    first, second = storage.host(1), storage.host(2)
    committed_app.delete(f"/api/nodes/{first}/")
    storage.gate.set()
    thread.join(20)
    assert list(committed_app.get("/api/nodes/").json) == [second]


def test_a_look_begins_only_when_the_one_before_has_ended(
    settings: Settings, storage: Storage, slow_look: Callable[[], threading.Thread]
) -> None:
    thread = slow_look()
    look(settings)
    assert storage.times_asked("127.0.0.2") == 2
    storage.gate.set()
    thread.join(20)
    look(settings)
    assert storage.times_asked("127.0.0.2") == 3


def test_no_transaction_is_open_during_a_look(
    committed: Engine, storage: Storage, slow_look: Callable[[], threading.Thread]
) -> None:
    thread = slow_look()
    with committed.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert connection.execute(text(query)).scalar_one() == 0
        connection.rollback()
    storage.gate.set()
    thread.join(20)


def test_a_look_that_fails_does_not_keep_the_next_from_looking(
    committed_app: TestApp, committed: Engine, settings: Settings, storage: Storage
) -> None:
    committed_app.authorization = CREDENTIAL
    host = storage.host(1)
    register(committed_app, host)

    def refuse(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "UPDATE storage_nodes" in statement:
            raise RuntimeError("the database is gone")

    event.listen(committed, "before_cursor_execute", refuse)
    try:
        with pytest.raises(RuntimeError):
            look(settings)
    finally:
        event.remove(committed, "before_cursor_execute", refuse)
    look(settings)
    assert storage.times_asked(host) == 3
