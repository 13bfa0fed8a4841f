"""The tasks that come with labctl, under the contract of tasks, and what each does beyond it."""

from pathlib import Path
from typing import Any

import pytest

from labctl.remote.states import Operation, Status
from labctl.remote.task_plugins.rolling_restart import RollingRestart

from .task import HOSTS, TaskContract, World


class TestRollingRestart(TaskContract):
    """A restart by ones."""

    task = RollingRestart
    options = {"service": "nginx", "interval": 1}
    bad_options = (
        {},
        {"service": "  "},
        {"service": 5},
        {"service": "--list"},
        {"service": "{{ lookup('pipe', 'id') }}"},
        {"service": "nginx", "batch": 0},
        {"service": "nginx", "batch": "2"},
        {"service": "nginx", "graceful": "yes"},
        {"service": "nginx", "health": ["true"]},
        {"service": "nginx", "retries": -1},
        {"service": "nginx", "interval": float("nan")},
        {"service": "nginx", "color": "red"},
    )

    def orders(self, world: World) -> list[tuple[str, tuple[str, ...]]]:
        return [(order.operation, order.hosts) for order in world.orders]

    def test_hosts_are_restarted_batch_by_batch_with_a_check_after_each(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        self.carry_out(world, batch=2, health="echo fine")

        assert self.orders(world) == [
            ("service", HOSTS[:2]),
            ("execute", HOSTS[:2]),
            ("service", HOSTS[2:]),
            ("execute", HOSTS[2:]),
        ]
        assert world.orders[0].arguments == {"name": "nginx", "start": True, "restart": True, "graceful": False}
        assert world.orders[1].arguments == {"command": "echo fine"}

    def test_without_a_command_a_host_is_well_that_answers_a_ping(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        self.carry_out(world, graceful=True)

        assert [order.operation for order in world.orders] == [Operation.SERVICE, Operation.PING] * 3
        assert world.orders[0].arguments["graceful"]

    @pytest.mark.parametrize(("fault", "status"), [("failing", Status.FAILED), ("unreachable", Status.UNREACHABLE)])
    def test_it_stops_at_the_first_batch_in_which_a_restart_fails(
        self, tmp_path: Path, fault: str, status: Status
    ) -> None:
        world = World(tmp_path, **{fault: ["alpha"]})
        results = self.carry_out(world)

        assert self.orders(world) == [("service", ("alpha",))]
        assert [(result.host, result.status) for result in results] == [("alpha", Status.ANNOUNCE), ("alpha", status)]

    def test_it_stops_at_the_first_batch_that_is_not_well_afterwards(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        results = self.carry_out(world, batch=2, health="echo no; exit 3", retries=2, interval=7)

        assert self.orders(world) == [("service", HOSTS[:2]), *[("execute", HOSTS[:2])] * 3]
        assert world.waited == 14
        last = {result.host: result for result in results}
        assert {host: result.status for host, result in last.items()} == dict.fromkeys(HOSTS[:2], Status.FAILED)
        assert last["alpha"].values["return_data"] == "after 3 checks: exit status 3: no"

    def test_a_host_that_needs_time_is_asked_again_and_only_that_one(self, tmp_path: Path) -> None:
        world = Recovering(tmp_path)
        results = self.carry_out(world, batch=3)

        assert self.orders(world) == [("service", HOSTS), ("ping", HOSTS), ("ping", ("beta",))]
        assert self.good(results) == set(HOSTS) and world.waited == 1


class Recovering(World):
    """Beta answers when it is asked for the second time."""

    def __call__(self, operation: Operation, hosts: Any, **arguments: Any) -> Any:
        pings = sum(order.operation == Operation.PING for order in self.orders)
        name = "faults.json"
        directory = self.executor._home
        content = '{"unreachable": ["beta"]}' if operation == Operation.PING and not pings else "{}"
        (directory / name).write_text(content)
        return super().__call__(operation, hosts, **arguments)
