"""``/runs/branch/main/suite/rados/...``: choosing runs by what they are, and listing the values there are."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webtest import TestApp

#: The word of the URL, and the key of a run that it chooses by.
WORDS = {
    "branch": "branch",
    "suite": "suite",
    "status": "status",
    "machine_type": "machine_type",
    "user": "user",
    "sha1": "sha1",
    "flavors": "flavor",
}

#: Runs are told apart by the letter that ends the branch.
JOBS: list[dict[str, Any]] = [
    {"at": "2026-01-01_00:00:00", "user": "ada", "suite": "rados", "branch": "main", "status": "pass", "sha1": "aa11"},
    {"at": "2026-01-01_23:59:59", "user": "ada", "suite": "rgw", "branch": "main", "status": "queued", "sha1": "aa22"},
    {"at": "2026-01-02_00:00:00", "user": "bob", "suite": "rados", "branch": "wip-b", "status": "fail", "sha1": "bb11"},
    {"at": "2026-01-03_12:00:00", "user": "bob", "suite": "fs", "branch": "main", "status": "dead", "sha1": "a%11"},
    {"at": "2026-01-05_12:00:00", "user": "eve", "suite": "fs", "branch": "a/b", "status": "running", "sha1": None},
]


def name_of(job: dict[str, Any]) -> str:
    return f"{job['user']}-{job['at']}-{job['suite']}-x-distro-default-smithi"


def add(app: TestApp, job: dict[str, Any]) -> None:
    keys = ("suite", "branch", "status", "sha1", "machine_type", "flavor")
    app.post_json(f"/runs/{name_of(job)}/jobs/", {"job_id": 1, **{key: job[key] for key in keys if key in job}})


@pytest.fixture
def lab(app: TestApp) -> TestApp:
    """Five runs; the server's zone is UTC, as in the dates of the URLs."""
    for number, job in enumerate(JOBS):
        add(app, {**job, "flavor": f"f{number % 2}", "machine_type": "smithi"})
    return app


def names(app: TestApp, url: str, **query: Any) -> list[str]:
    path = url.partition("?")[0]
    return [run["name"] for run in app.get(url, query or None, extra_environ={"RAW_URI": path}).json]


def runs(*numbers: int) -> list[str]:
    return [name_of(JOBS[number]) for number in numbers]


@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        ("branch/main", (3, 1, 0)),
        ("branch/wip-b", (2,)),
        ("branch/a%2Fb", (4,)),
        ("branch/nosuch", ()),
        ("suite/rados", (2, 0)),
        ("user/ada", (1, 0)),
        ("machine_type/smithi", (4, 3, 2, 1, 0)),
        ("status/finished%20fail", (2,)),
        ("status/finished pass", (0,)),
        ("status/nosuch", ()),
        ("sha1/aa", (1, 0)),
        ("sha1/aa11", (0,)),
        ("sha1/a%25", (3,)),
        ("sha1/%25", ()),
        ("sha1/_a", ()),
        ("flavors/f1", (3, 1)),
        ("date/2026-01-01", (1, 0)),
        ("date/2026-01-02", (2,)),
        ("date/2026-01-04", ()),
        ("date/from/2026-01-02/to/2026-01-03", (3, 2)),
        ("date/from/2026-01-03/to/2026-01-02", ()),
        ("date/from/0001-01-01/to/9999-12-31", (4, 3, 2, 1, 0)),
        ("date/from/2026-01-02", ()),
        ("branch/main/suite/fs", (3,)),
        ("branch/main/user/ada/suite/rados/date/2026-01-01", (0,)),
        ("date/2026-01-01/suite/rgw", (1,)),
        ("date/from/2026-01-01/to/2026-01-02/user/bob", (2,)),
        ("user/ada/date/from/2026-01-01/to/2026-01-01/branch/main/flavor/f1", (1,)),
        ("suite/rados/status/finished%20fail/sha1/bb", (2,)),
    ],
)
@pytest.mark.parametrize("mount", ["/runs", "/api/runs"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_words_in_the_path_choose_runs_the_last_scheduled_first(
    lab: TestApp, mount: str, path: str, numbers: tuple[int, ...], slash: str
) -> None:
    assert names(lab, f"{mount}/{path}{slash}") == runs(*numbers)


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("branch", ["a/b", "main", "wip-b"]),
        ("suite", ["fs", "rados", "rgw"]),
        ("status", ["finished dead", "finished fail", "finished pass", "queued", "running"]),
        ("user", ["ada", "bob", "eve"]),
        ("machine_type", ["smithi"]),
        ("sha1", ["a%11", "aa11", "aa22", "bb11"]),
        ("flavors", ["f0", "f1"]),
        ("date", ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-05"]),
        ("branch/main/suite", ["fs", "rados", "rgw"]),
        ("branch/main/suite/rados/status", ["finished pass"]),
        ("branch/a%2Fb/sha1", []),
        ("user/bob/date", ["2026-01-02", "2026-01-03"]),
        ("date/2026-01-01/user", ["ada"]),
        ("date/from/2026-01-02/to/2026-01-09/user", ["bob", "eve"]),
        ("user/ada/flavor", ["f0", "f1"]),
        ("branch/nosuch/suite", []),
    ],
)
def test_a_path_that_ends_in_a_word_lists_the_values_that_are_left(lab: TestApp, path: str, values: list[str]) -> None:
    # How the database sorts signs is its own affair.
    answer = lab.get(f"/runs/{path}/", extra_environ={"RAW_URI": f"/runs/{path}/"}).json
    assert sorted(answer) == values
    letters = [value for value in answer if value.isalpha()]
    assert letters == sorted(letters)


@pytest.mark.parametrize(
    "path",
    [
        "flavor",
        "branch/main/branch",
        "branch/main/branch/main",
        "branch/main/nosuch",
        "branch/main/nosuch/x",
        "branch/main/flavors/f1",
        "branch/main/queued",
        "date/2026-01-01/date",
        "date/2026-01-01/date/2026-01-01",
        "date/from/2026-01-01/to/2026-01-02/date/2026-01-01",
        "date/from/2026-01-01/until/2026-01-02",
        "branch/main/__class__",
        "branch//suite",
        "queued/branch",
    ],
)
def test_a_word_twice_or_an_unknown_word_is_not_found(lab: TestApp, path: str) -> None:
    assert "message" in lab.get(f"/runs/{path}/", status=404).json


@pytest.mark.parametrize("mount", ["/runs", "/api/runs"])
@pytest.mark.parametrize(
    "path",
    [
        *("date/nosuch", "date/2026-13-01", "date/2026-02-30", "date/20260101", "date/2026-01-01x", "date/from/x"),
        *("date/from/2026-01-01/to/x", "date/nosuch/suite/rados", "date/2026-1", "user/ada/date/x", "date/%20"),
    ],
)
def test_a_bad_date_is_refused_with_the_words_that_clients_look_for(lab: TestApp, mount: str, path: str) -> None:
    message = lab.get(f"{mount}/{path}/", status=400).json["message"]
    assert message.startswith("date format must match")


def test_runs_of_today_and_yesterday_are_found_by_these_words_on_any_day(app: TestApp, stopped_clock: Any) -> None:
    stopped_clock.time = stopped_clock.time.replace(month=3, day=1, hour=0, minute=0, second=0)
    for user, at in (("old", "2026-02-27_12:00:00"), ("ada", "2026-02-28_12:00:00"), ("bob", "2026-03-01_00:00:00")):
        add(app, {"user": user, "at": at, "suite": "rados", "branch": "main"})
    assert [run["user"] for run in app.get("/runs/date/yesterday/").json] == ["ada"]
    assert [run["user"] for run in app.get("/runs/date/today/").json] == ["bob"]
    assert [run["user"] for run in app.get("/runs/date/from/yesterday/to/today/").json] == ["bob", "ada"]


def test_since_leaves_out_what_was_scheduled_at_that_midnight_or_before(lab: TestApp) -> None:
    assert names(lab, "/runs/suite/rados/", since="2026-01-01") == runs(2)
    assert names(lab, "/runs/suite/rados/", since="2026-01-02") == []
    assert names(lab, "/runs/branch/main/", since="2025-12-31") == runs(3, 1, 0)
    assert names(lab, "/runs/date/2026-01-01/", since="2026-01-01") == runs(1)
    for bad in ("x", "", "2026-02-30"):
        assert "message" in lab.get("/runs/suite/rados/", {"since": bad}, status=400).json


def test_chosen_runs_come_in_pages(lab: TestApp) -> None:
    assert names(lab, "/runs/machine_type/smithi/", count=2) == runs(4, 3)
    assert names(lab, "/runs/machine_type/smithi/", count=2, page=2) == runs(2, 1)
    assert names(lab, "/runs/machine_type/smithi/", count=2, page=4) == []
    for name in ("count", "page"):
        assert lab.get("/runs/suite/rados/", {name: "0"}, status=400).json["message"].startswith(f"{name}: ")


def test_fields_do_not_cut_chosen_runs(lab: TestApp) -> None:
    whole = lab.get("/runs/suite/rgw/").json
    assert lab.get("/runs/suite/rgw/?fields=name").json == whole
    assert whole == [run for run in lab.get("/runs/").json if run["suite"] == "rgw"]


def test_queued_runs_are_those_with_a_queued_job_whatever_their_status_the_first_scheduled_first(lab: TestApp) -> None:
    assert names(lab, "/runs/queued/") == runs(1)
    lab.post_json(f"/runs/{name_of(JOBS[4])}/jobs/", {"job_id": 2, "status": "queued"})
    lab.post_json(f"/runs/{name_of(JOBS[0])}/jobs/", {"job_id": 2, "status": "queued"})
    assert names(lab, "/runs/queued/") == runs(0, 1, 4)
    assert names(lab, "/runs/queued/", count=1, page=2) == runs(1)
    lab.put_json(f"/runs/{name_of(JOBS[1])}/jobs/1/", {"status": "running"})
    assert names(lab, "/runs/queued/") == runs(0, 4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(sorted(WORDS)), unique=True, max_size=4), data=st.data())
def test_any_chain_of_words_chooses_the_runs_that_have_all_of_the_values(
    app: TestApp, words: list[str], data: st.DataObject
) -> None:
    if not app.get("/runs/").json:
        for number, job in enumerate(JOBS):
            add(app, {**job, "flavor": f"f{number % 2}", "machine_type": "smithi"})
    everything = [run for run in app.get("/runs/").json if "/" not in run["branch"] and run["sha1"]]
    path, matches = "/runs", list[Callable[[Any], bool]]()
    for place, word in enumerate(words):
        key = WORDS[word]
        value = data.draw(st.sampled_from(sorted({run[key] for run in everything})))
        path += f"/{word if place == 0 else key}/{quote(value)}"
        matches.append(lambda run, key=key, value=value: run[key] == value)
    if words:
        expected = [run["name"] for run in everything if all(fits(run) for fits in matches)]
        expected.sort(key=lambda name: name.split("-", 1)[1], reverse=True)
        found = [run["name"] for run in app.get(path).json if "/" not in run["branch"] and run["sha1"]]
        assert found == expected


def test_an_empty_lab_has_no_values_and_no_runs(app: TestApp) -> None:
    for word in (*WORDS, "date", "queued"):
        assert app.get(f"/runs/{word}/").json == []
