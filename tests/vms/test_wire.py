import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.errors import Invalid, NotFound
from labctl.vms import wire
from labctl.vms.catalog import Asked
from labctl.vms.on_demand import MOST, Request
from labctl.vms.service import Change, Host
from labctl.vms.states import RequestState, VMState
from labctl.vms.wire import V1, V2, V3, Rules, Version

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def taken(name: str, domain: str = "example.com") -> Any:
    return SimpleNamespace(name=name, domain=domain)


def vm(**changes: Any) -> Any:
    values = {
        "name": "abc",
        "pool": "deb",
        "state": "running",
        "domain": "example.com",
        "host": None,
        "ip": None,
        "checkout": NOW - timedelta(hours=3, minutes=6),
        "lifetime": 12,
        "expires": NOW + timedelta(hours=8, minutes=54),
        "destroyed": None,
        "reason": None,
        "tags": {},
        "disks": [],
        "snapshots": [],
        "failed": None,
    }
    return SimpleNamespace(**{**values, **changes})


# Host names


@pytest.mark.parametrize(
    ("segment", "host"),
    [
        ("abc", Host("abc")),
        ("ABC.Example.COM", Host("abc", "example.com")),
        ("abc.", Host("abc")),
        (".x", Host("", "x")),
    ],
)
def test_a_host_name_is_read_with_or_without_domain_in_any_case(segment: str, host: Host) -> None:
    assert wire.host_from_wire(segment) == host


# Asking for VMs


def test_numbers_are_read_as_text_or_as_numbers() -> None:
    assert wire.counts_from_wire({"a": "2", "b": 1, "c": "0", "d": 0}) == {"a": 2, "b": 1, "c": 0, "d": 0}


@pytest.mark.parametrize("value", ["", "x", "-1", -1, 1.0, 1.5, True, None, [], {}, 1001, "1001", " 1", "1e3", "٣"])
def test_what_is_no_number_of_vms_is_refused_by_the_name_of_its_pool(value: Any) -> None:
    with pytest.raises(Invalid) as raised:
        wire.counts_from_wire({"good": 1, "deb": value})
    assert raised.value.field == "deb"


def test_nothing_and_too_much_are_refused() -> None:
    with pytest.raises(Invalid):
        wire.counts_from_wire({})
    with pytest.raises(Invalid):
        wire.counts_from_wire({"a": 600, "b": 600})


def test_names_in_a_path_add_up() -> None:
    assert wire.counts_from_path("a+b+a") == {"a": 2, "b": 1}
    assert wire.counts_from_path("a") == {"a": 1}


def test_an_empty_name_in_a_path_is_a_pool_that_is_not_there() -> None:
    assert "" in wire.counts_from_path("a++b")


@given(st.dictionaries(st.text(), JSON))
def test_whatever_a_client_asks_for_is_read_or_refused(data: dict[str, Any]) -> None:
    try:
        counts = wire.counts_from_wire(data)
    except Invalid:
        return
    assert counts.keys() == data.keys()
    assert all(int(data[name]) == count >= 0 for name, count in counts.items())
    assert sum(counts.values()) <= MOST


def test_one_vm_is_text_and_several_are_a_list_and_none_is_nothing() -> None:
    given = {"a": [taken("x")], "b": [taken("y"), taken("z")]}
    assert wire.given_to_wire(given, "", V1) == {
        "ok": True,
        "a": {"hostname": "x"},
        "b": {"hostname": ["y", "z"]},
        "domain": "example.com",
    }
    assert wire.given_to_wire({}, "example.com", V1) == {"ok": True, "domain": "example.com"}
    assert wire.given_to_wire({}, "", V1) == {"ok": True}


@pytest.mark.parametrize("version", [V2, V3])
def test_later_versions_tell_full_names_and_no_domain(version: Version) -> None:
    assert wire.given_to_wire({"a": [taken("x")]}, "example.com", version) == {
        "ok": True,
        "a": {"hostname": "x.example.com"},
    }
    assert wire.given_to_wire({"a": [taken("x", "")]}, "", version) == {"ok": True, "a": {"hostname": "x"}}


def test_where_vms_have_several_domains_each_is_told_with_its_own() -> None:
    given = {"a": [taken("x", "a.com")], "b": [taken("y", "b.com")]}
    assert wire.given_to_wire(given, "a.com", V1) == {
        "ok": True,
        "a": {"hostname": "x.a.com"},
        "b": {"hostname": "y.b.com"},
    }


# One VM


def test_a_running_vm_is_shown_with_its_times() -> None:
    assert wire.vm_to_wire(vm(), NOW, 12, V1) == {
        "ok": True,
        "abc": {
            "template": "deb",
            "lifetime": 12,
            "running": 3.1,
            "remaining": 8.9,
            "start_time": "2026-11-20T08:54:00+00:00",
            "end_time": "2026-11-20T20:54:00+00:00",
            "state": "running",
            "ip": "",
            "domain": "example.com",
        },
    }


def test_what_there_is_of_tags_snapshots_and_disks_is_shown() -> None:
    shown = wire.vm_to_wire(
        vm(tags={"a": "b"}, snapshots=["s"], disks=[8, 16], ip="10.0.0.1", host="hv1", failed=["disk 1: no"]),
        NOW,
        12,
        V3,
    )["abc"]
    assert shown["tags"] == {"a": "b"}
    assert shown["snapshots"] == ["s"]
    assert shown["disk"] == ["+8gb", "+16gb"]
    assert (shown["ip"], shown["host"]) == ("10.0.0.1", "hv1")
    assert shown["failed"] == ["disk 1: no"]
    assert shown["fqdn"] == "abc.example.com"
    assert "domain" not in shown


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (VMState.REQUESTED, "pending"),
        (VMState.PENDING, "pending"),
        (VMState.READY, "ready"),
        (VMState.RUNNING, "running"),
        (VMState.COMPLETED, "running"),
        (VMState.DESTROYED, "destroyed"),
    ],
)
def test_clients_know_four_states(state: VMState, shown: str) -> None:
    assert wire.vm_to_wire(vm(state=state), NOW, 12, V1)["abc"]["state"] == shown


def test_a_vm_that_nobody_has_shows_no_times_and_the_lifetime_it_would_get() -> None:
    shown = wire.vm_to_wire(vm(state="ready", checkout=None, lifetime=None, expires=None), NOW, 24, V1)["abc"]
    assert shown == {"template": "deb", "lifetime": 24, "state": "ready", "ip": "", "domain": "example.com"}


def test_a_destroyed_vm_shows_how_long_it_ran() -> None:
    shown = wire.vm_to_wire(vm(state="destroyed", destroyed=NOW - timedelta(hours=1)), NOW, 12, V1)["abc"]
    assert shown["running"] == 2.1
    assert "remaining" not in shown
    assert (
        wire.vm_to_wire(vm(state="destroyed", destroyed=NOW, checkout=None), NOW, 12, V1)["abc"].get("running") is None
    )


def test_nothing_remains_of_a_lifetime_that_is_over() -> None:
    assert wire.vm_to_wire(vm(expires=NOW - timedelta(hours=1)), NOW, 12, V1)["abc"]["remaining"] == 0.0


@pytest.mark.parametrize("size", ["0", "-1", "x", "4097", "1.5", "8gb", "999999999999"])
def test_a_disk_of_no_size_is_not_there_or_not_valid(size: str) -> None:
    with pytest.raises(NotFound):
        wire.gigabytes_from_wire(size, V1)
    with pytest.raises(Invalid):
        wire.gigabytes_from_wire(size, V3)
    assert wire.gigabytes_from_wire("8", V1) == 8


# Changing a VM


def wrong(data: dict[str, Any], **rules: Any) -> list[str]:
    return wire.change_from_wire(data, Rules(**rules))[1]


def test_a_change_may_hold_a_lifetime_and_tags() -> None:
    change, wrong = wire.change_from_wire({"lifetime": "2", "tags": {"a": "b", "n": 1, "t": True}}, Rules())
    assert change == Change(2, {"a": "b", "n": "1", "t": "true"})
    assert wrong == []
    assert wire.change_from_wire({}, Rules()) == (Change(), [])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((value, str(value)) for value in (0, "0", -1, "-1", "x", 1.5, [], {})),
        (None, "null"),
        (True, "true"),
        ([None, "ä"], '[null, "ä"]'),
        ({"a": False}, '{"a": false}'),
    ],
)
def test_a_lifetime_must_be_a_positive_number_and_what_it_is_instead_is_told_as_json(value: Any, text: str) -> None:
    assert wrong({"lifetime": value}) == [f"You provided a lifetime ({text}) but you must provide a positive number."]


def test_a_lifetime_must_be_less_than_its_limit() -> None:
    assert wrong({"lifetime": 99}, lifetime=100) == []
    assert wrong({"lifetime": "100"}, lifetime=100) == [
        "You provided a lifetime (100) that exceeds the configured maximum of 100."
    ]
    assert wrong({"lifetime": 87_600}) != []


@pytest.mark.parametrize(("value", "text"), [(None, "null"), (["a"], '["a"]'), (True, "true"), ("x", "x")])
def test_tags_that_are_no_object_are_told_as_json(value: Any, text: str) -> None:
    assert wrong({"tags": value}) == [f"You provided tags ({text}) as something other than a hash."]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    assert wrong({"lifetime": 0, "tags": "x", "disk": 8}) == [
        "You provided a lifetime (0) but you must provide a positive number.",
        "You provided tags (x) as something other than a hash.",
        "Unknown argument disk.",
    ]


def test_only_known_tags_may_be_set() -> None:
    assert wrong({"tags": {"a": "1", "b": "2"}}, tags=["a"]) == ["You provided unsupported tags (b)."]
    assert wrong({"tags": {"a": "1"}}, tags=["a"]) == []


@pytest.mark.parametrize("value", [[], {}, {"x": 1}, "x" * 1001])
def test_the_value_of_a_tag_must_be_text_of_some_length(value: Any) -> None:
    assert len(wrong({"tags": {"a": value}})) == 1


def test_tags_without_a_value_are_left_out() -> None:
    assert wire.change_from_wire({"tags": {"a": "", "b": None, "c": "x"}}, Rules())[0].tags == {"c": "x"}


@pytest.mark.parametrize(
    ("pattern", "value", "kept"),
    [
        (r"(.*)\/", "foo/bar", "foo"),
        (r"(\w+)-(\w+)?", "a-", "a"),
        (r"(\d+)", "text", "text"),
        (r"\d+", "x12", "x12"),
    ],
)
def test_a_filter_keeps_what_its_groups_capture(pattern: str, value: str, kept: str) -> None:
    rules = Rules(filters={"url": re.compile(pattern)})
    assert wire.change_from_wire({"tags": {"url": value}}, rules)[0].tags == {"url": kept}


@given(st.dictionaries(st.sampled_from(["lifetime", "tags", "other"]), JSON))
def test_whatever_a_client_wants_to_change_is_read_or_refused(data: dict[str, Any]) -> None:
    change, wrong = wire.change_from_wire(data, Rules())
    if not wrong:
        assert data.keys() <= {"lifetime", "tags"}
        assert (change.lifetime or 0) < wire.MOST_HOURS
        assert all(isinstance(value, str) and value for value in change.tags.values())


# Requests


def test_a_request_may_bring_its_id() -> None:
    assert wire.request_from_wire({"deb": "2", "request_id": "my-1"}) == ({"deb": 2}, "my-1")
    assert wire.request_from_wire({"deb": "2"}) == ({"deb": 2}, "")


@pytest.mark.parametrize("value", [1, None, "a/b", "a b", "x" * 129, [], "ä"])
def test_an_id_that_would_not_fit_a_url_is_refused(value: Any) -> None:
    with pytest.raises(Invalid) as raised:
        wire.request_from_wire({"deb": 1, "request_id": value})
    assert raised.value.field == "request_id"


def request(state: RequestState, there: int = 1) -> Request:
    vms = {"deb": [taken(f"h{number}") for number in range(there)]}
    return Request("r", state, "because", {"deb": [Asked("deb", ("a",), 2), Asked("deb", ("b",), 1)]}, vms)


def test_a_request_that_waits_is_202_with_numbers_as_text() -> None:
    assert wire.request_to_wire(request(RequestState.WAITING), "example.com", V1) == (
        202,
        {"ok": True, "request_id": "r", "ready": False, "deb": {"ready": "1", "pending": "2"}},
    )


def test_a_request_that_is_ready_has_a_list_even_of_one() -> None:
    status, answer = wire.request_to_wire(request(RequestState.READY), "example.com", V1)
    assert (status, answer["ready"], answer["deb"]) == (200, True, {"hostname": ["h0"]})
    assert answer["domain"] == "example.com"
    _, answer = wire.request_to_wire(request(RequestState.READY), "example.com", V3)
    assert answer["deb"] == {"hostname": ["h0.example.com"]}
    assert "domain" not in answer


@pytest.mark.parametrize("state", [RequestState.DELETED, RequestState.FAILED])
def test_a_request_that_is_over_says_why(state: RequestState) -> None:
    assert wire.request_to_wire(request(state), "example.com", V1) == (
        200,
        {"ok": True, "request_id": "r", "ready": False, "message": "because"},
    )
