"""Work that is deferred: it is there when the transaction that deferred it has committed, and not before."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from labctl import db, queue, worker
from labctl.events import tasks
from labctl.runs.models import Run
from labctl.runs.service import add_run
from labctl.settings import Settings

TASK = tasks.purge


@pytest.fixture
def waiting(committed: Engine) -> Callable[[], list[tuple[str, dict[str, Any]]]]:
    """The tasks that wait, as any other connection sees them."""

    def look() -> list[tuple[str, dict[str, Any]]]:
        query = "SELECT task_name, args FROM procrastinate_jobs WHERE status = 'todo' ORDER BY id"
        with committed.connect() as connection:
            return [(row.task_name, row.args) for row in connection.execute(text(query))]

    return look


def runs() -> int:
    with db.transaction() as session:
        return session.query(Run).count()


def test_a_task_waits_once_its_transaction_has_committed_and_not_before(waiting: Callable[[], Any]) -> None:
    with db.transaction() as session:
        add_run(session, "a")
        queue.defer(session, TASK, number=1, text="ä", more=[None, {"x": True}])
        assert waiting() == []
    assert waiting() == [("events.purge", {"number": 1, "text": "ä", "more": [None, {"x": True}]})]
    assert runs() == 1


def test_a_task_goes_with_the_transaction_that_is_undone(waiting: Callable[[], Any]) -> None:
    def fail() -> None:
        with db.transaction() as session:
            add_run(session, "a")
            queue.defer(session, TASK)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert waiting() == []
    assert runs() == 0


def test_a_task_is_deferred_as_often_as_it_is_asked_for(waiting: Callable[[], Any]) -> None:
    for number in range(3):
        with db.transaction() as session:
            queue.defer(session, TASK, number=number)
            queue.defer(session, TASK, number=number)
    assert [arguments["number"] for _, arguments in waiting()] == [0, 0, 1, 1, 2, 2]


def test_with_once_a_second_task_of_the_same_word_is_left_out_and_the_transaction_goes_on(
    waiting: Callable[[], Any],
) -> None:
    for number in range(3):
        with db.transaction() as session:
            add_run(session, f"before {number}")
            queue.defer(session, TASK, once="word", number=number)
            queue.defer(session, TASK, once="word", number=number)
            queue.defer(session, TASK, once=f"word {number}", number=number)
            add_run(session, f"after {number}")
    assert [arguments["number"] for _, arguments in waiting()] == [0, 0, 1, 2]
    assert runs() == 6


def test_of_many_that_defer_a_task_once_at_the_same_moment_one_does_and_none_fails(
    waiting: Callable[[], Any], at_once: Callable[..., list[Any]]
) -> None:
    def act(number: int) -> None:
        with db.transaction() as session:
            add_run(session, str(number))
            queue.defer(session, TASK, once="word")

    at_once([lambda number=number: act(number) for number in range(8)])
    assert len(waiting()) == 1
    assert runs() == 8


def test_two_tasks_of_one_name_are_a_mistake_of_the_programmer() -> None:
    with pytest.raises(ValueError, match=r"two tasks named events\.purge"):
        queue.task("events.purge")(lambda settings: None)


def test_a_worker_knows_every_task_of_every_domain_and_when_those_come_round_that_do(settings: Settings) -> None:
    app = queue.make_worker_app(settings)
    for domain in worker.DOMAINS:
        registered = [value for value in vars(domain).values() if isinstance(value, queue.Task)]
        assert registered
        for task in registered:
            assert task.name in app.tasks
            # A name says the domain it belongs to.
            assert task.name.split(".")[0] == domain.__name__.split(".")[1]
    periodic = {task.task.name for task in app.periodic_registry.periodic_tasks.values()}
    assert {"events.purge", "queues.requeue_abandoned", "runs.bury_silent", "queue.requeue_stalled"} <= periodic
