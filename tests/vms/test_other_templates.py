"""A pool that is to be made of another template: ready VMs of the old one go as fast as those of the new one come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from labctl.pools import Pool
from labctl.vms import overrides
from labctl.vms.states import VMState

from .lab import Lab

SIZE = 8
DEBIAN = Pool(name="debian", size=SIZE)
MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab(session: Session, tmp_path: Path, stopped_clock: Any) -> MakeLab:
    def make(**options: Any) -> Lab:
        return Lab(session, tmp_path / "world", stopped_clock, [DEBIAN], **options).filled()

    return make


def ready_of(lab: Lab, template: str) -> int:
    return sum(vm.template == template for vm in lab.ready())


def test_as_many_stay_ready_as_before_until_all_are_of_the_new_template(make_lab: MakeLab) -> None:
    lab = make_lab()
    overrides.change(lab.session, "template", [DEBIAN], {"debian": "debian-13"})
    least = SIZE
    for _ in range(30):
        lab.settle(seconds=1)
        least = min(least, len(lab.ready()))

    assert least == SIZE and ready_of(lab, "debian-13") == SIZE
    assert len(lab.world) == SIZE
    assert {event.data["reason"] for event in lab.events("vm.completed")} == {"its pool has another template"}


def test_no_more_than_a_quarter_of_the_pool_is_beyond_its_size(make_lab: MakeLab) -> None:
    lab = make_lab()
    overrides.change(lab.session, "template", [DEBIAN], {"debian": "debian-13"})
    most = 0
    for _ in range(30):
        lab.settle(seconds=1)
        most = max(most, sum(lab.counts().values()) - len(lab.vms(VMState.COMPLETED)))

    assert most == SIZE + SIZE // 4


def test_where_there_is_no_room_for_more_some_go_first(make_lab: MakeLab) -> None:
    lab = make_lab(capacity=SIZE)
    overrides.change(lab.session, "template", [DEBIAN], {"debian": "debian-13"})
    least = SIZE
    for _ in range(90):
        lab.settle(seconds=1)
        least = min(least, len(lab.ready()))

    assert least == SIZE - SIZE // 4 and ready_of(lab, "debian-13") == SIZE


def test_a_template_that_does_not_work_leaves_the_old_vms_ready(make_lab: MakeLab) -> None:
    lab = make_lab(unknown=["debian-13"], broken=["debian-14"])
    for template in ("debian-13", "debian-14"):
        overrides.change(lab.session, "template", [DEBIAN], {"debian": template})
        lab.live(60)
        assert ready_of(lab, "debian") == SIZE
        assert lab.pool("debian").blocked_until is not None
    overrides.change(lab.session, "template", [DEBIAN], {"debian": "debian-15"})
    lab.live(60)

    assert ready_of(lab, "debian-15") == SIZE == len(lab.world)


def test_a_pool_that_is_smaller_as_well_loses_the_old_ones_first(make_lab: MakeLab) -> None:
    lab = make_lab()
    overrides.change(lab.session, "template", [DEBIAN], {"debian": "debian-13"})
    lab.settle(seconds=1)
    lab.settle(seconds=1)
    assert ready_of(lab, "debian-13") == 2
    overrides.change(lab.session, "size", [DEBIAN], {"debian": 2})
    lab.settle()

    assert (ready_of(lab, "debian-13"), ready_of(lab, "debian")) == (2, 0)
