"""Lists in pages: by number, as old clients ask, and by the cursor in the Link header."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webtest import TestApp

LINK = re.compile(r'<(http://localhost(/[^>?]*)\?([^>]*))>; rel="next"')


def walk(app: TestApp, url: str) -> tuple[list[str], int]:
    """Follow a list from page to page to its end; give the names and the number of pages."""
    seen: list[str] = []
    pages = 0
    while True:
        answer = app.get(url, extra_environ={"RAW_URI": url})
        entries = answer.json
        seen += [entry["name"] for entry in entries] if isinstance(entries, list) else list(entries)
        pages += 1
        if "Link" not in answer.headers:
            return seen, pages
        found = LINK.fullmatch(answer.headers["Link"])
        assert found, answer.headers["Link"]
        url = f"{found[2]}?{found[3]}"
        assert pages < 100


@pytest.fixture
def lab(app: TestApp, stopped_clock: Any) -> Callable[[int], TestApp]:
    """Runs, of which always three share the time they were posted and scheduled."""

    def fill(count: int) -> TestApp:
        for number in range(count):
            if number % 3 == 0:
                stopped_clock.advance(seconds=1)
            app.post_json(f"/runs/run {number:03}/jobs/", {"job_id": 1, "status": "queued", "branch": "a/b"})
        return app

    return fill


@pytest.mark.parametrize(
    ("path", "newest_first"),
    [("/runs/", True), ("/api/runs", True), ("/runs/branch/a%2Fb/", True), ("/runs/queued/", False)],
)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 11, 12, 100])
def test_the_cursor_walks_a_list_whole_and_shows_nothing_twice(
    lab: Callable[[int], TestApp], path: str, newest_first: bool, count: int
) -> None:
    app = lab(11)
    expected = sorted((f"run {number:03}" for number in range(11)), reverse=newest_first)
    seen, pages = walk(app, f"{path}?count={count}")
    assert seen == expected
    # A last page that is full cannot know that it is the last.
    assert pages == 11 // count + 1


def test_the_first_page_without_count_has_a_hundred_and_says_where_it_goes_on(lab: Callable[[int], TestApp]) -> None:
    seen, pages = walk(lab(101), "/runs/")
    assert seen == [f"run {number:03}" for number in reversed(range(101))]
    assert pages == 2


def test_the_cursor_keeps_the_other_parameters_but_the_page(lab: Callable[[int], TestApp]) -> None:
    app = lab(6)
    answer = app.get("/runs/?page=2&count=2&fields=name&x=%C3%A4%26%ff")
    found = LINK.fullmatch(answer.headers["Link"])
    assert found
    query = found[3].split("&")
    assert {"count=2", "fields=name", "x=%C3%A4%26%FF"} <= set(query)
    assert not any(part.startswith("page=") for part in query)
    rest = app.get(found[1].removeprefix("http://localhost"))
    assert rest.json == [{"name": "run 001"}, {"name": "run 000"}]


def test_runs_that_come_meanwhile_move_pages_but_not_cursors(lab: Callable[[int], TestApp], stopped_clock: Any) -> None:
    app = lab(6)
    first = app.get("/runs/?count=3")
    stopped_clock.advance(seconds=1)
    for name in ("new 1", "new 2"):
        app.post_json("/runs/", {"name": name})
    by_number = app.get("/runs/?count=3&page=2").json
    assert [run["name"] for run in by_number] == ["run 004", "run 003", "run 002"]
    found = LINK.fullmatch(first.headers["Link"])
    assert found
    by_cursor = app.get(found[1].removeprefix("http://localhost")).json
    assert [run["name"] for run in by_cursor] == ["run 002", "run 001", "run 000"]


def test_a_run_that_is_removed_at_the_cursor_does_not_stop_the_walk(lab: Callable[[int], TestApp]) -> None:
    app = lab(5)
    found = LINK.fullmatch(app.get("/runs/?count=2").headers["Link"])
    assert found
    app.delete("/runs/run 003/")
    assert [run["name"] for run in app.get(found[1].removeprefix("http://localhost")).json] == ["run 002", "run 001"]


def test_a_shorter_page_is_the_last_and_has_no_link(lab: Callable[[int], TestApp]) -> None:
    app = lab(3)
    assert "Link" not in app.get("/runs/?count=4").headers
    assert "Link" not in app.get("/runs/?count=2&page=2").headers
    assert "Link" not in app.get("/runs/?count=2&page=9").headers


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from([0, 0, 1, 1_000_000, 86_400_000_000]), max_size=9), count=st.integers(1, 4))
def test_lists_are_walked_whole_however_close_their_times_are(
    app: TestApp, stopped_clock: Any, steps: list[int], count: int
) -> None:
    for run in app.get("/runs/").json:
        app.delete(f"/runs/{run['name']}")
    for number, step in enumerate(steps):
        stopped_clock.time += timedelta(microseconds=step)
        app.post_json("/runs/", {"name": f"run {number}"})
    seen, _ = walk(app, f"/runs/?count={count}")
    assert seen == [f"run {number}" for number in reversed(range(len(steps)))]
