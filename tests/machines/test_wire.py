from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from labctl import times
from labctl.errors import Invalid
from labctl.http import body
from labctl.machines import wire

NODE = {
    "name": "one.lab",
    "description": None,
    "up": True,
    "machine_type": "smithi",
    "is_vm": False,
    "vm_host": None,
    "os_type": "ubuntu",
    "os_version": "22.04",
    "arch": "x86_64",
    "locked": False,
    "locked_since": None,
    "locked_by": None,
    "mac_address": None,
    "ssh_pub_key": "ssh-rsa K0",
}
LOCK_MANY = {"count": 2, "locked_by": "a@b", "machine_type": "smithi", "description": None}


def message_of(model: Any, data: dict[str, Any]) -> str:
    with pytest.raises(Invalid) as raised:
        body.parse(model, data)
    return raised.value.message


def test_a_node_has_the_keys_of_the_protocol_in_their_order() -> None:
    shuffled = dict(sorted(NODE.items(), reverse=True))
    assert list(wire.node_to_wire(shuffled).items()) == list(NODE.items())


def test_a_node_leaves_out_what_is_no_key_of_the_protocol() -> None:
    assert wire.node_to_wire({**NODE, "id": 7}) == NODE


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (None, None),
        (datetime(2026, 1, 2, 3, 4, 5, 60007, UTC), "2026-01-02 03:04:05.060007"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02 03:04:05"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))), "2026-01-02 01:04:05"),
    ],
)
def test_a_time_is_written_in_utc_without_zone(time: datetime | None, text: str | None) -> None:
    assert times.to_wire(time) == text


def test_the_answer_to_a_lock_has_five_keys() -> None:
    locked = {**NODE, "locked": True, "locked_by": "a@b"}
    assert list(wire.lock_to_wire(locked).items()) == [
        ("name", "one.lab"),
        ("locked", True),
        ("locked_by", "a@b"),
        ("machine_type", "smithi"),
        ("is_vm", False),
    ]


def test_only_the_keys_that_were_sent_are_given_on() -> None:
    given = body.parse(wire.MachineInput, {"up": True, "vm_host": None, "user": "ubuntu", "name": "ignored"})
    assert given.sent() == {"up": True, "vm_host": None}


def test_a_number_stands_for_a_string() -> None:
    given = body.parse(wire.MachineInput, {"os_version": 22.04, "description": 7})
    assert given.sent() == {"os_version": "22.04", "description": "7"}


@pytest.mark.parametrize(
    "key", ["arch", "description", "locked_by", "mac_address", "os_type", "ssh_pub_key", "vm_host"]
)
@pytest.mark.parametrize("value", [True, [], {}])
def test_what_is_no_string_is_refused_by_name(key: str, value: Any) -> None:
    assert message_of(wire.MachineInput, {key: value}).startswith(f"{key}: ")


@pytest.mark.parametrize("key", ["up", "is_vm", "locked"])
@pytest.mark.parametrize("value", [None, 1, "true", []])
def test_what_is_no_boolean_is_refused_by_name(key: str, value: Any) -> None:
    assert message_of(wire.MachineInput, {key: value}).startswith(f"{key}: ")


@pytest.mark.parametrize(
    "key", ["arch", "locked_by", "mac_address", "machine_type", "os_type", "os_version", "vm_host"]
)
def test_a_string_may_have_255_characters(key: str) -> None:
    assert body.parse(wire.MachineInput, {key: "x" * 255}).sent() == {key: "x" * 255}
    assert message_of(wire.MachineInput, {key: "x" * 256}).startswith(f"{key}: ")


def test_descriptions_and_keys_may_be_longer() -> None:
    long = {"description": "x" * 5000, "ssh_pub_key": "y" * 5000}
    assert body.parse(wire.MachineInput, long).sent() == long


def test_a_time_is_read_as_utc() -> None:
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    read = [
        body.parse(wire.MachineInput, {"locked_since": text}).locked_since
        for text in ("2026-01-02 03:04:05", "2026-01-02 03:04:05.000007", None)
    ]
    assert read == [since, since + timedelta(microseconds=7), None]


@pytest.mark.parametrize("value", ["yesterday", "2026-01-02", 0, 1e300, True, [], "10000-01-01 00:00:00"])
def test_what_is_no_time_is_refused_by_name(value: Any) -> None:
    assert message_of(wire.MachineInput, {"locked_since": value}) == (
        "locked_since: must be a time, YYYY-MM-DD HH:MM:SS, in UTC"
    )


def test_a_machine_type_is_one_type() -> None:
    assert message_of(wire.MachineInput, {"machine_type": "a|b"}).startswith("machine_type: ")


@pytest.mark.parametrize("value", [None, 1, "true"])
def test_a_lock_needs_a_boolean(value: Any) -> None:
    assert message_of(wire.LockInput, {"locked": value, "locked_by": "a@b"}).startswith("locked: ")
    assert message_of(wire.LockInput, {"locked_by": "a@b"}) == "locked: Field required"


@pytest.mark.parametrize("count", [1, 10_000, 2.0])
def test_lock_many_takes_whole_numbers(count: float) -> None:
    wanted = wire.wanted_from_wire(body.parse(wire.LockManyInput, {**LOCK_MANY, "count": count}))
    assert (wanted.count, type(wanted.count)) == (count, int)


@pytest.mark.parametrize("count", [2.5, True, "2", None, [], 10_001, 1e300, float("inf")])
def test_lock_many_refuses_what_is_no_sensible_count(count: Any) -> None:
    assert message_of(wire.LockManyInput, {**LOCK_MANY, "count": count}).startswith("count: ")


@pytest.mark.parametrize("count", [0, -1, 0.5, -(10**18)])
def test_lock_many_refuses_less_than_one(count: float) -> None:
    assert message_of(wire.LockManyInput, {**LOCK_MANY, "count": count}) == "cannot lock less than 1 node"


@pytest.mark.parametrize("key", sorted(LOCK_MANY))
def test_lock_many_needs_all_four_keys(key: str) -> None:
    data = {name: value for name, value in LOCK_MANY.items() if name != key}
    assert message_of(wire.LockManyInput, data) == f"must pass these fields: {key}"


def test_lock_many_names_all_the_keys_that_are_missing() -> None:
    assert message_of(wire.LockManyInput, {}) == ("must pass these fields: count, locked_by, machine_type, description")


@pytest.mark.parametrize("value", [None, "", "|"])
def test_lock_many_needs_a_machine_type(value: str | None) -> None:
    assert message_of(wire.LockManyInput, {**LOCK_MANY, "machine_type": value}) == "must specify machine_type"


@pytest.mark.parametrize(
    ("key", "value"),
    [("locked_by", None), ("locked_by", ""), ("machine_type", []), ("description", True), ("arch", {})],
)
def test_lock_many_refuses_wrong_types_by_name(key: str, value: Any) -> None:
    assert message_of(wire.LockManyInput, {**LOCK_MANY, key: value}).startswith(f"{key}: ")


def test_lock_many_reads_several_types_and_what_else_is_wanted() -> None:
    data = {**LOCK_MANY, "machine_type": "smithi|mira|", "os_type": "", "os_version": 22.04, "arch": None}
    wanted = wire.wanted_from_wire(body.parse(wire.LockManyInput, data))
    assert (wanted.machine_types, wanted.os_type, wanted.os_version, wanted.arch) == (
        ["smithi", "mira"],
        None,
        "22.04",
        None,
    )


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"locked_by": "a@b"}, "names"),
        ({"names": ["one"]}, "locked_by"),
        ({"names": ["one"], "locked_by": None}, "locked_by"),
        ({"names": ["one"], "locked_by": ""}, "locked_by"),
        ({"names": "one", "locked_by": "a@b"}, "names"),
        ({"names": [], "locked_by": "a@b"}, "names"),
        ({"names": [1], "locked_by": "a@b"}, "names.0"),
        ({"names": {"one": 1}, "locked_by": "a@b"}, "names"),
        ({"names": ["one"], "locked_by": "a@b", "description": None}, "description"),
    ],
)
def test_unlock_many_takes_a_list_of_names_and_who_and_nothing_else(data: dict[str, Any], field: str) -> None:
    assert message_of(wire.UnlockManyInput, data).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("value", "types"), [(None, None), ("", None), ("|", None), ("a", ["a"]), ("a||b", ["a", "b"])]
)
def test_machine_types_are_separated_by_bars(value: str | None, types: list[str] | None) -> None:
    assert wire.types_from_wire(value) == types


def test_job_stats_begin_with_the_machine_that_had_the_fewest_jobs() -> None:
    stats = wire.job_stats_to_wire(
        [("b", "pass", 5), ("a", "pass", 3), ("a", "fail", 4), ("c", "dead", 5), ("d", "fail", 1)]
    )
    assert list(stats.items()) == [
        ("d", {"fail": 1}),
        ("b", {"pass": 5}),
        ("c", {"dead": 5}),
        ("a", {"fail": 4, "pass": 3}),
    ]
