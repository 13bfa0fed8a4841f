"""What clients may say about runs and jobs, and the shapes they get."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl import times
from labctl.errors import Invalid
from labctl.http import body
from labctl.runs import documents, wire
from labctl.runs.service import Claim


def report(**keys: Any) -> Any:
    return wire.report_from_wire(body.parse(wire.JobInput, wire.normalized(keys)))


def test_a_report_keeps_what_was_sent_and_nothing_else() -> None:
    sent = {"status": "running", "owner": None, "kernel": {"kdb": 1}, "first_in_suite": True, "posted": "never"}
    assert report(**sent).changes == {"status": "running", "owner": None, "kernel": {"kdb": 1}}


def test_dots_and_hyphens_in_keys_become_underscores() -> None:
    given_ = report(**{"mon.a_kernel_sha1": "abc", "mon.b-kernel-sha1": "def", "os-type": "ubuntu"})
    assert given_.changes == {"mon_a_kernel_sha1": "abc", "mon_b_kernel_sha1": "def", "os_type": "ubuntu"}


@pytest.mark.parametrize(("sent", "kept"), [(1500, "1500"), ("1500", "1500"), (0, "0"), (-1, "-1"), ("a/b c", "a/b c")])
def test_a_job_id_may_be_a_number_or_a_string_and_is_a_string(sent: Any, kept: str) -> None:
    assert report(job_id=sent).job_id == kept


@pytest.mark.parametrize("sent", [True, False, 1.5, 1.0, "", [], ["1"], {}, "x" * 129, 10**128, "a\nb", "a\x7f"])
def test_a_bad_job_id_is_refused_by_name(sent: Any) -> None:
    with pytest.raises(Invalid, match=r"^job_id: "):
        report(job_id=sent)


def test_a_job_id_may_have_128_characters() -> None:
    assert report(job_id="x" * 128).job_id == "x" * 128


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", "done"),
        ("status", "Running"),
        ("status", 1),
        ("status", True),
        ("status", ["running"]),
        ("success", "maybe"),
        ("success", []),
        ("success", 2),
        ("branch", "x" * 300),
        ("branch", ["main"]),
        ("branch", True),
        ("branch", "a\0b"),
        ("suite", {}),
        ("machine_type", "a\nb"),
        ("sha1", "x" * 256),
        ("duration", "long"),
        ("duration", []),
        ("priority", 1e30),
        ("priority", 2**31),
        ("priority", -(2**31) - 1),
        ("priority", 1.5),
        ("priority", "high"),
        ("pid", 2**63),
        ("pid", "x"),
        ("seed", 1e300),
        ("targets", ["ubuntu@host"]),
        ("targets", "ubuntu@host"),
        ("targets", {"": "key"}),
        ("targets", {"ubuntu@": "key"}),
        ("targets", {"ubuntu@" + "x" * 256: "key"}),
        ("targets", {"ubuntu@a\nb": "key"}),
        ("timestamp", "yesterday"),
        ("timestamp", 5),
        ("timestamp", ["2026-01-02 03:04:05"]),
        ("updated", "2026-01-02T03:04:05Z"),
        ("updated", ""),
        ("updated", {}),
        ("updated", "2026-02-30 00:00:00"),
        ("claim", "mine"),
        ("claim", {"worker": "a"}),
        ("claim", {"worker": "a", "attempt": "first"}),
        ("name", "x" * 513),
        ("owner", False),
        ("description", {"a": 1}),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(Invalid, match=rf"(^|; ){key}[:.]"):
        report(**{key: value})


def test_every_bad_key_is_named_at_once() -> None:
    with pytest.raises(Invalid) as refused:
        report(status="done", priority="high", targets=[])
    assert {part.partition(":")[0] for part in refused.value.message.split("; ")} == {"status", "priority", "targets"}


def test_what_was_sent_is_not_repeated_in_the_refusal() -> None:
    with pytest.raises(Invalid) as refused:
        report(branch="hunter2" * 50, status="hunter2", targets={"hunter2@": "hunter2"})
    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize("key", ["os_version", "branch", "subset", "email", "failure_reason"])
def test_a_number_may_stand_for_a_text(key: str) -> None:
    assert report(**{key: 22}).changes == {key: "22"}


@pytest.mark.parametrize(
    "sent", ["2026-01-02 03:04:05", "2026-01-02_03:04:05", "2026-01-02 03:04:05.000000", "2026-01-02_03:04:05.0"]
)
def test_the_time_of_an_update_is_local_to_the_server(sent: str) -> None:
    assert report(updated=sent).updated == datetime(2026, 1, 2, 3, 4, 5).astimezone(UTC)


@pytest.mark.parametrize("sent", ["2026-01-02_03:04:05", "2026-01-02 03:04:05"])
def test_a_timestamp_is_shown_as_it_was_sent_but_for_the_underscore(sent: str) -> None:
    assert report(timestamp=sent).changes == {"timestamp": "2026-01-02 03:04:05"}


def test_a_claim_goes_to_the_service_and_not_into_the_job() -> None:
    given_ = report(status="running", claim={"worker": "a", "attempt": 3})
    assert given_.claim == Claim("a", 3)
    assert given_.changes == {"status": "running"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_what_a_job_says_of_kernel_tasks_roles_and_overrides_comes_back_as_it_was_sent(value: Any) -> None:
    for key in ("kernel", "tasks", "roles", "overrides"):
        assert documents.read(documents.write(report(**{key: value}).changes)) == {key: value}


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        (None, None),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02 03:04:05"),
        (datetime(2026, 1, 2, 3, 4, 5, 60, tzinfo=UTC), "2026-01-02 03:04:05.000060"),
    ],
)
def test_times_are_written_in_utc_without_a_zone_and_without_empty_fractions(
    time: datetime | None, shown: str | None
) -> None:
    assert times.to_wire(time) == shown
