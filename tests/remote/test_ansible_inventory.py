"""What the ansible executor says of an order while the inventory is broken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.remote.executor import Failed, Order
from labctl.remote.executors.ansible import AnsibleExecutor
from labctl.remote.states import Operation, Status
from tests.contracts.executor import read_all


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "playbooks").mkdir()
    directory = tmp_path / "inventory"
    directory.mkdir()
    (directory / "good.ini").write_text("good ansible_connection=local\n")
    return directory


@pytest.fixture
def executor(inventory: Path) -> Iterator[AnsibleExecutor]:
    executor = AnsibleExecutor({"workdir": str(inventory.parent)}, Path("unused"))
    yield executor
    executor.close()


def test_an_order_for_a_host_that_a_broken_inventory_does_not_have_tells_what_is_wrong_with_it(
    executor: AnsibleExecutor, inventory: Path
) -> None:
    (inventory / "other.ini").write_text("lost ansible_connection=local\n")
    assert set(executor.hosts()) == {"good", "lost"}

    (inventory / "other.ini").write_text("[lost\nlost ansible_connection=local\n")
    run = executor.begin(Order("jid", Operation.PING, ("lost",), {}, 60))
    assert read_all(run) == [] and run.error is not None and "\n" not in run.error
    assert run.error.startswith("not in the inventory: lost; the inventory cannot be read: ")
    with pytest.raises(Failed) as told:
        executor.hosts()
    assert "other.ini" in run.error and "other.ini" in str(told.value)

    # What there is of it goes on.
    run = executor.begin(Order("jid", Operation.PING, ("good",), {}, 60))
    assert [(result.host, result.status) for result in read_all(run)] == [("good", Status.OK)]
