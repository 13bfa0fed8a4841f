from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from labctl.errors import Invalid
from labctl.pools import Pool
from labctl.vms import figures
from labctl.vms.catalog import Catalog
from labctl.vms.figures import Past, Present
from labctl.vms.states import VMState

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
TODAY = NOW.date()
YESTERDAY = TODAY - timedelta(days=1)
CATALOG = Catalog([Pool(name="deb", alias=["linux"], size=3), Pool(name="el", size=2), Pool(name="off")])
DONE = {
    "boots": 3,
    "boot_total": 27.9,
    "boot_min": 7.3,
    "boot_max": 11.3,
    "clones": 6,
    "clone_total": 0.22,
    "clone_min": 0.004,
    "clone_max": 0.06,
}


def state(**changes: Any) -> Any:
    nothing = dict.fromkeys(("size", "template", "clone_target", "blocked_until", "reason", "last_boot", *DONE))
    return SimpleNamespace(**{**nothing, **changes})


def day(when: date, pool: str, **changes: Any) -> Any:
    return SimpleNamespace(day=when, pool=pool, **{**DONE, **changes})


def tag(when: date, name: str, value: str, number: int) -> Any:
    return SimpleNamespace(day=when, tag=name, value=value, number=number)


def present(
    counts: dict[tuple[str, str], int] | None = None, states: Any = None, broken: dict[str, str] | None = None
) -> Present:
    return Present(CATALOG, counts or {}, states or {}, broken or {})


FULL: dict[tuple[str, str], int] = {
    ("deb", VMState.READY): 2,
    ("deb", VMState.PENDING): 1,
    ("deb", VMState.REQUESTED): 4,
    ("deb", VMState.RUNNING): 5,
    ("el", VMState.READY): 2,
    ("el", VMState.COMPLETED): 6,
    ("gone", VMState.RUNNING): 1,
}


def status(found: Present, *views: str, **more: Any) -> Any:
    return figures.status_to_wire(found, views or figures.VIEWS, 12.44, **more)


def test_the_status_of_pools_that_have_something_ready() -> None:
    last = datetime(2026, 11, 20, 11, 31, 13, tzinfo=UTC)
    answer = status(present(FULL, {"deb": state(**DONE, last_boot=last)}))
    assert answer == {
        "boot": {"duration": {"average": 9.3, "min": 7.3, "max": 11.3, "total": 27.9}, "count": {"total": 3}},
        "capacity": {"current": 4, "total": 5, "percent": 80.0},
        "clone": {"duration": {"average": 0.0, "min": 0.0, "max": 0.06, "total": 0.22}, "count": {"total": 6}},
        "pools": {
            "deb": {
                "ready": 2,
                "running": 5,
                "pending": 5,
                "max": 3,
                "lastBoot": "2026-11-20 11:31:13 +0000",
                "alias": ["linux"],
            },
            "el": {"ready": 2, "running": 0, "pending": 0, "max": 2, "lastBoot": ""},
            "off": {"ready": 0, "running": 0, "pending": 0, "max": 0, "lastBoot": ""},
        },
        "queue": {
            "pending": 5,
            "cloning": 4,
            "booting": 1,
            "ready": 4,
            "running": 6,
            "completed": 6,
            "total": 21,
        },
        "status": {"ok": True, "message": "Battle station fully armed and operational.", "uptime": 12.4},
    }


def test_pools_with_a_size_and_nothing_ready_are_empty() -> None:
    answer = status(present())
    assert answer["status"]["ok"] is False
    assert answer["status"]["message"] == "Found 2 empty pools."
    assert answer["status"]["empty"] == ["deb", "el"]
    assert answer["capacity"] == {"current": 0, "total": 5, "percent": 0.0}


def test_a_size_that_was_changed_counts() -> None:
    answer = status(present(FULL, {"deb": state(size=0), "off": state(size=9)}))
    assert answer["capacity"]["total"] == 11
    assert answer["status"]["empty"] == ["off"]
    assert answer["pools"]["off"]["max"] == 9


def test_no_pools_at_all_are_fine() -> None:
    assert figures.status_to_wire(Present(Catalog([]), {}, {}, {}), figures.VIEWS, 0)["capacity"]["percent"] == 0


@pytest.mark.parametrize(("views", "parts"), [((), set()), (("queue", "boot", "x"), {"queue", "boot"})])
def test_only_the_parts_that_are_asked_for_are_told(views: Any, parts: set[str]) -> None:
    assert figures.status_to_wire(present(), views, 0).keys() == {*parts, "status"}


def test_what_is_blocked_broken_or_not_real_is_told() -> None:
    states = {
        "deb": state(blocked_until=NOW + timedelta(minutes=1), reason="no such template"),
        "el": state(reason="over"),
        "gone": state(blocked_until=NOW + timedelta(minutes=1)),
    }
    told = status(present(FULL, states, {"hv": "it is down"}), unreal=["el"])["status"]
    assert told["blocked"] == {"deb": "no such template"}
    assert told["providers"] == {"hv": "it is down"}
    assert told["fake"] == ["el"]
    assert told["ok"] is True


def test_poolstat_tells_of_the_pools_that_there_are() -> None:
    assert figures.poolstat_to_wire(present(FULL), ["el", "nosuch", "deb"]) == {
        "pools": {"el": {"max": 2, "ready": 2}, "deb": {"max": 3, "ready": 2, "alias": ["linux"]}}
    }
    assert figures.poolstat_to_wire(present(FULL), []) == {"pools": {}}


def test_the_configuration_shows_what_was_changed_and_what_is_blocked() -> None:
    blocked = NOW + timedelta(minutes=1)
    pools = figures.pools_to_wire(
        present(
            {}, {"deb": state(size=7, template="t", clone_target=2), "el": state(blocked_until=blocked, reason="r")}
        )
    )
    assert [pool["name"] for pool in pools] == ["deb", "el", "off"]
    assert {key: pools[0][key] for key in ("size", "template", "clone_target", "template_ready")} == {
        "size": 7,
        "template": "t",
        "clone_target": 2,
        "template_ready": True,
    }
    assert (pools[1]["template"], pools[1]["template_ready"], pools[1]["blocked"]) == ("el", False, "r")


# Summary


def test_days_are_today_if_nothing_is_said() -> None:
    assert figures.days_from_wire(None, None, TODAY) == (TODAY, TODAY)
    assert figures.days_from_wire("2026-11-01", None, TODAY) == (date(2026, 11, 1), TODAY)
    assert figures.days_from_wire("2026-11-01", "2026-12-01", TODAY) == (date(2026, 11, 1), date(2026, 12, 1))


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ("x", None, "Invalid date format 'x', must match YYYY-MM-DD."),
        ("2026-02-30", None, "Invalid date format '2026-02-30', must match YYYY-MM-DD."),
        ("2026-1-1", None, "Invalid date format '2026-1-1', must match YYYY-MM-DD."),
        (None, "", "Invalid date format '', must match YYYY-MM-DD."),
        ("2026-11-20", "2026-11-19", "Date range is invalid, 'to' cannot come before 'from'."),
        ("2026-11-21", "2026-11-22", "Date range is invalid, 'from' must be in the past."),
        ("0001-01-01", None, "Date range is invalid, it cannot have more than 3660 days."),
    ],
)
def test_days_that_cannot_be_are_refused_in_the_words_that_clients_know(
    first: str | None, last: str | None, message: str
) -> None:
    with pytest.raises(Invalid) as raised:
        figures.days_from_wire(first, last, TODAY)
    assert raised.value.message == message


NOTHING = {"duration": {"average": 0, "min": 0, "max": 0, "total": 0}, "count": {"total": 0}}


def test_a_day_without_anything_is_zeros() -> None:
    assert figures.summary_to_wire(Past(TODAY, TODAY, [], [])) == {
        "boot": {**NOTHING, "count": {"average": 0, "min": 0, "max": 0, "total": 0}},
        "clone": {**NOTHING, "count": {"average": 0, "min": 0, "max": 0, "total": 0}},
        "tag": {},
        "daily": [{"date": "2026-11-20", "boot": NOTHING, "clone": NOTHING, "tag": {}}],
    }


PAST = Past(
    YESTERDAY - timedelta(days=1),
    TODAY,
    [day(YESTERDAY, "deb"), day(TODAY, "deb", boots=1, boot_total=2.0, boot_min=2.0, boot_max=2.0), day(TODAY, "el")],
    [tag(YESTERDAY, "user", "jdoe", 2), tag(TODAY, "user", "jdoe", 1), tag(TODAY, "user", "total", 4)],
)


def test_days_and_pools_add_up() -> None:
    answer = figures.summary_to_wire(PAST)
    assert [shown["date"] for shown in answer["daily"]] == ["2026-11-18", "2026-11-19", "2026-11-20"]
    assert answer["boot"] == {
        "duration": {
            "average": 8.3,
            "min": 2.0,
            "max": 11.3,
            "total": 57.8,
            "pool": {
                "deb": {"average": 7.5, "min": 2.0, "max": 11.3, "total": 29.9},
                "el": {"average": 9.3, "min": 7.3, "max": 11.3, "total": 27.9},
            },
        },
        "count": {
            "average": 2.3,
            "min": 0,
            "max": 4,
            "total": 7,
            "pool": {"deb": {"total": 4}, "el": {"total": 3}},
        },
    }
    assert answer["daily"][1]["boot"] == {
        "duration": {
            "average": 9.3,
            "min": 7.3,
            "max": 11.3,
            "total": 27.9,
            "pool": {"deb": {"average": 9.3, "min": 7.3, "max": 11.3, "total": 27.9}},
        },
        "count": {"total": 3, "pool": {"deb": {"total": 3}}},
    }
    assert answer["daily"][0]["boot"] == NOTHING


def test_tags_are_counted_by_value_and_altogether() -> None:
    answer = figures.summary_to_wire(PAST)
    assert answer["tag"] == {"user": {"jdoe": 3, "total": 7}}
    assert [shown["tag"] for shown in answer["daily"]] == [
        {},
        {"user": {"jdoe": 2, "total": 2}},
        {"user": {"jdoe": 1, "total": 5}},
    ]


@pytest.mark.parametrize(("part", "only"), [("boot", "count"), ("clone", "duration"), ("boot", None), ("clone", None)])
def test_a_part_of_the_summary_is_as_in_the_whole(part: str, only: str | None) -> None:
    whole, shown = figures.summary_to_wire(PAST), figures.summary_to_wire(PAST, part, only)
    assert shown.keys() == {part, "daily"}
    expected = whole[part] if only is None else {only: whole[part][only]}
    assert shown[part] == expected
    assert [each.keys() for each in shown["daily"]] == [{"date", part}] * 3


def test_one_tag_of_the_summary_is_alone() -> None:
    past = Past(TODAY, TODAY, [], [tag(TODAY, "user", "jdoe", 1), tag(TODAY, "job", "x", 1)])
    assert figures.summary_to_wire(past, "tag", "job") == {
        "tag": {"job": {"x": 1, "total": 1}},
        "daily": [{"date": "2026-11-20", "tag": {"job": {"x": 1, "total": 1}}}],
    }
