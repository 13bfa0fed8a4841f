"""What the name of a run tells about it."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.runs.names import RunName, parse

#: Local to the server, which stands in Greenwich but for one test.
TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("rest", "suite", "branch", "machine_type"),
    [
        ("rados-main-distro-default-smithi", "rados", "main", "smithi"),
        ("rados-master-testing-basic-plana", "rados", "master", "plana"),
        ("rados-wip-1234-x-distro-default-smithi", "rados", "wip-1234-x", "smithi"),
        ("rados:thrash-main-distro-default-smithi", "rados:thrash", "main", "smithi"),
        ("upgrade-fs-next-testing-basic-plana", "upgrade", "fs-next", "plana"),
        ("ceph-deploy-wip-a-b-distro-basic-mira", "ceph-deploy", "wip-a-b", "mira"),
        ("rados-main-distro-default", "rados", "main", ""),
        ("rados-main-distro-default-smithi-ubuntu22.04", "rados", "main", "smithi"),
        ("rados-main---basic-smithi", "rados", "main", "smithi"),
        ("rados-main-distro-default-a-new-type", "rados", "main", "a-new-type"),
        ("mysuite-main-kernel-newflavor-smithi", "mysuite", "main", "smithi"),
    ],
)
def test_a_name_of_the_usual_form_tells_its_parts(rest: str, suite: str, branch: str, machine_type: str) -> None:
    assert parse(f"scott-2026-01-02_03:04:05-{rest}") == RunName("scott", TIME, suite, branch, machine_type)


def test_a_user_with_hyphens_ends_where_the_date_begins() -> None:
    assert parse("a-b-c-2026-01-02_03:04:05-rados-main-distro-default-smithi").user == "a-b-c"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "anything",
        "scott-rados-main-distro-default-smithi",
        "scott-2026-01-02_03:04:05",
        "scott-2026-13-02_03:04:05-rados-main-distro-default-smithi",
        "scott-2026-01-02_25:04:05-rados-main-distro-default-smithi",
        "-2026-01-02_03:04:05-",
        "scott-2026-01-02_03:04:05-rados",
    ],
)
def test_a_name_of_another_form_tells_nothing(name: str) -> None:
    assert parse(name) == RunName("", None, "", "", "")


@pytest.mark.usefixtures("new_york")
def test_the_time_in_a_name_is_local_to_the_server() -> None:
    told = parse("scott-2026-01-02_03:04:05-rados-main-distro-default-smithi")
    assert told.scheduled == datetime(2026, 1, 2, 8, 4, 5, tzinfo=UTC)


WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789:._", min_size=1, max_size=12)


@given(
    user=st.lists(WORDS, min_size=1, max_size=3).map("-".join),
    at=st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)),
    suite=WORDS,
    branch=st.lists(WORDS, min_size=1, max_size=4).map("-".join),
    flavor=st.sampled_from(["basic", "default", "crimson-debug"]),
    machine_type=WORDS.filter(lambda word: word not in ("basic", "default", "crimson", "gcov", "jaeger", "notcmalloc")),
)
def test_names_that_are_put_together_from_parts_are_taken_apart_into_the_same_parts(
    user: str, at: datetime, suite: str, branch: str, flavor: str, machine_type: str
) -> None:
    name = f"{user}-{at:%Y-%m-%d_%H:%M:%S}-{suite}-{branch}-distro-{flavor}-{machine_type}"
    told = parse(name)
    assert (told.user, told.suite, told.branch, told.machine_type) == (user, suite, branch, machine_type)
    assert told.scheduled == at.replace(microsecond=0).astimezone(UTC)


@given(st.one_of(st.text(), st.from_regex(r"\A.*-\d{4}-\d{2}-\d{2}_\d{2}:\d{2}:\d{2}-.*\Z")))
def test_no_name_whatever_is_an_error(name: str) -> None:
    told = parse(name)
    for part in (told.user, told.suite, told.branch, told.machine_type):
        assert part == part.strip(" -")


def test_a_distro_may_have_letters_in_its_version() -> None:
    told = parse("scott-2026-01-02_03:04:05-rados-main-distro-default-smithi-centos_9.stream")
    assert told.machine_type == "smithi"
