"""A provider with several hypervisors, one of which does not answer: the others go on, and its VMs stay as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from labctl.pools import Pool
from labctl.vms import queries
from labctl.vms.models import Orphan
from labctl.vms.provider import Partial, Unreachable
from labctl.vms.states import VMState

from .lab import Lab

SILENT, ANSWERS = "h1", "h2"
TROUBLE = "h1 does not answer"


class HalfLab(Lab):
    """A lab with two hypervisors, one of which can be made silent."""

    def silence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names, look_up, destroy = self.provider.names, self.provider.look_up, self.provider.destroy

        def is_silent(name: str) -> bool:
            found = look_up(name)
            return found is not None and found.host == SILENT

        def unless_silent(call: Callable[[str], Any]) -> Callable[[str], Any]:
            def ask(name: str) -> Any:
                if is_silent(name):
                    raise Unreachable(TROUBLE)
                return call(name)

            return ask

        there = lambda: Partial({name for name in names() if not is_silent(name)}, {ANSWERS}, TROUBLE)  # noqa: E731
        monkeypatch.setattr(self.provider, "names", there)
        monkeypatch.setattr(self.provider, "look_up", unless_silent(look_up))
        monkeypatch.setattr(self.provider, "destroy", unless_silent(destroy))

    def on(self, host: str) -> set[str]:
        return {vm.name for vm in self.ready() if vm.host == host}


@pytest.fixture
def lab(session: Session, tmp_path: Path, stopped_clock: Any) -> HalfLab:
    lab = HalfLab(session, tmp_path / "world", stopped_clock, [Pool(name="debian", size=6)], hosts=[SILENT, ANSWERS])
    lab.filled()
    assert len(lab.on(SILENT)) == len(lab.on(ANSWERS)) == 3
    # Two lists, so that the next one counts.
    lab.live(70)
    return lab


def test_vms_on_a_hypervisor_that_cannot_be_listed_are_not_missing(
    lab: HalfLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lab.on(SILENT)
    lab.silence(monkeypatch)
    lab.live(200)

    assert lab.on(SILENT) == before
    assert {vm.missing for vm in lab.vms()} == {0}


def test_a_vm_that_vanishes_on_a_hypervisor_that_answers_is_replaced_meanwhile(
    lab: HalfLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = sorted(lab.on(ANSWERS))[0]
    lab.silence(monkeypatch)
    (lab.directory / "vms" / f"{lost}.json").unlink()
    lab.live(200)

    assert len(lab.ready()) == 6 and lost not in lab.on(ANSWERS)


def test_what_is_wrong_is_shown_as_long_as_it_is_and_the_provider_is_not_left_alone(
    lab: HalfLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = [vm for vm in lab.ready() if vm.host == SILENT]
    with monkeypatch.context() as patch:
        lab.silence(patch)
        for vm in given_back:
            vm.state, vm.due = VMState.COMPLETED, lab.clock()
        lab.live(200)
        assert queries.open_providers(lab.session) == {"fake": TROUBLE}
        assert lab.standing().open_until is None
        assert {vm.state for vm in given_back} == {VMState.COMPLETED}
    lab.live(400)

    assert queries.open_providers(lab.session) == {}
    assert {vm.state for vm in given_back} == {VMState.DESTROYED}


def test_an_orphan_is_not_forgotten_because_its_hypervisor_is_silent(
    lab: HalfLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.session.add(Orphan(provider="fake", name="stray", first_seen=lab.clock()))
    lab.silence(monkeypatch)
    lab.live(100)

    assert lab.session.get(Orphan, ("fake", "stray")) is not None
