"""The fake provider does wrong what it is told to do wrong, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from labctl.vms.provider import Failed, Misconfigured, NoCapacity, Wanted
from labctl.vms.providers.fake import FakeProvider

Make = Callable[..., FakeProvider]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda **options: FakeProvider("fake", {"directory": str(tmp_path / "world"), **options})


def wanted(name: str = "vm1", template: str = "debian") -> Wanted:
    return Wanted(name, template, {})


def test_a_vm_runs_when_its_time_to_boot_is_over(make: Make, stopped_clock: Any) -> None:
    provider = make(boot_seconds=(5, 5), address="127.0.0.1")
    provider.create(wanted())
    found = provider.look_up("vm1")
    assert found is not None and not found.running and found.addresses == ()
    stopped_clock.advance(seconds=5)

    found = provider.look_up("vm1")
    assert found is not None and found.running and found.addresses == ("127.0.0.1",) and found.host == "fake"


def test_making_a_vm_again_does_not_make_it_boot_again(make: Make, stopped_clock: Any) -> None:
    provider = make(boot_seconds=(5, 5))
    provider.create(wanted())
    stopped_clock.advance(seconds=5)
    provider.create(wanted())

    found = provider.look_up("vm1")
    assert found is not None and found.running


def test_a_full_provider_says_that_there_is_no_room_but_not_for_what_is_there(make: Make) -> None:
    provider = make(capacity=1)
    provider.create(wanted())
    provider.create(wanted())
    with pytest.raises(NoCapacity):
        provider.create(wanted("vm2"))
    provider.destroy("vm1")
    provider.create(wanted("vm2"))


def test_a_broken_template_fails_and_may_leave_a_half_made_vm_that_is_listed(make: Make) -> None:
    provider = make(broken=["debian"], seed=1)
    names = [f"vm{number}" for number in range(20)]
    for name in names:
        with pytest.raises(Failed):
            provider.create(wanted(name))
    half_made = provider.names()
    assert 0 < len(half_made) < len(names)
    found = provider.look_up(sorted(half_made)[0])
    assert found is not None and not found.running

    mended = make()
    for name in names:
        mended.create(wanted(name))
    assert mended.names() == set(names)


def test_some_of_the_vms_fail(make: Make) -> None:
    provider = make(failure_rate=0.5, seed=1)
    failed = 0
    for number in range(50):
        try:
            provider.create(wanted(f"vm{number}"))
        except Failed:
            failed += 1
    assert 10 < failed < 40


def test_vms_vanish_some_time_after_they_began_to_run(make: Make, stopped_clock: Any) -> None:
    provider = make(vanish_rate=1, vanish_seconds=(10, 10), boot_seconds=(0, 0))
    provider.create(wanted())
    assert provider.names() == {"vm1"}
    stopped_clock.advance(seconds=10)

    assert provider.names() == set() and provider.look_up("vm1") is None


def test_a_list_forgets_a_vm_once_also_if_another_process_asks_then(make: Make) -> None:
    make().create(wanted())
    assert [sorted(make(forget_rate=1).names()) for _ in range(4)] == [[], ["vm1"], [], ["vm1"]]


def test_faults_hold_from_the_moment_their_file_is_there(make: Make) -> None:
    provider = make()
    provider.create(wanted())
    (provider.directory / "faults.json").write_bytes(orjson.dumps({"unknown": ["debian"]}))
    with pytest.raises(Misconfigured, match="no template debian"):
        provider.create(wanted("vm2"))


def test_nobody_brings_back_what_was_destroyed_while_it_was_made(make: Make) -> None:
    provider = make(clone_seconds=(0.01, 0.01))
    destroying = make()
    provider._wait = lambda seconds: destroying.destroy("vm1")  # type: ignore[method-assign]
    with pytest.raises(Failed, match="there is no VM vm1"):
        provider.create(wanted())

    assert provider.names() == set()


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"capacity": -1, "colour": 1}, ["capacity: Input should be greater than or equal to 0", "colour: Unexpected"]),
        ({"boot_seconds": [2, 1]}, ["options: Value error, boot_seconds: 2 is more than 1"]),
        ({"hang_rate": 2}, ["hang_rate: Input should be less than or equal to 1"]),
    ],
)
def test_mistakes_in_the_options_are_named(make: Make, options: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(Misconfigured) as raised:
        make(**options)
    found = str(raised.value).splitlines()
    assert len(found) == len(lines) and all(one.startswith(line) for one, line in zip(found, lines, strict=True))
