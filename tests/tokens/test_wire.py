"""How tokens look on the wire."""

from datetime import UTC, datetime, timedelta, timezone

from labctl import times
from labctl.tokens import wire
from labctl.tokens.service import Shown

NEW = Shown(1, "0123456789abcdef", 7, "ada", datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), None)
USED = Shown(2, "fedcba9876543210", 7, "ada", NEW.created, datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC))


def test_times_are_in_utc_whatever_zone_they_come_in() -> None:
    assert times.to_wire_with_offset(NEW.created) == "2026-01-02 03:04:05 +0000"
    assert (
        times.to_wire_with_offset(NEW.created.astimezone(timezone(timedelta(hours=5)))) == "2026-01-02 03:04:05 +0000"
    )


def test_a_list_is_keyed_by_id_and_says_never_of_what_was_not_used() -> None:
    assert wire.tokens_to_wire([NEW, USED]) == {
        "ok": True,
        "0123456789abcdef": {"created": "2026-01-02 03:04:05 +0000", "last": "never"},
        "fedcba9876543210": {"created": "2026-01-02 03:04:05 +0000", "last": "2026-02-03 04:05:06 +0000"},
    }


def test_one_token_is_keyed_as_asked_and_leaves_out_what_there_is_not() -> None:
    assert wire.token_to_wire("secret", NEW, []) == {
        "ok": True,
        "secret": {"user": "ada", "created": "2026-01-02 03:04:05 +0000"},
    }
    assert wire.token_to_wire("id", USED, ["a", "b"])["id"] == {
        "user": "ada",
        "created": "2026-01-02 03:04:05 +0000",
        "last": "2026-02-03 04:05:06 +0000",
        "vms": {"running": ["a", "b"]},
    }
