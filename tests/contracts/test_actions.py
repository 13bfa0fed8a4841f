"""The actions that come with labctl, under the contract of actions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from labctl.maintenance.action import Action, Operate
from labctl.maintenance.actions.check import Check
from labctl.maintenance.actions.command import Command
from labctl.maintenance.actions.dummy import Dummy
from labctl.maintenance.actions.reboot import Reboot
from labctl.maintenance.actions.role import Role

from .action import ActionContract

HOSTS: dict[str, tuple[Mapping[str, Any], set[str]]] = {
    "no hosts": ({"hosts": []}, {"hosts"}),
    "hosts that are none": ({"hosts": "one"}, {"hosts"}),
    "all wrong": ({"hosts": [""], "timeout": "soon", "x": 1}, {"hosts", "timeout", "x"}),
}


class TestCommand(ActionContract):
    kind: ClassVar[type[Action]] = Command
    metadata: ClassVar[Mapping[str, Any]] = {"command": "true"}
    wrong = {
        **HOSTS,
        "nothing": ({"command": ""}, {"command"}),
        "a list": ({"command": ["ls"]}, {"command"}),
        "NUL": ({"command": "ls\0"}, {"command"}),
    }


class TestRole(ActionContract):
    kind: ClassVar[type[Action]] = Role
    metadata: ClassVar[Mapping[str, Any]] = {"role": "upgrade"}
    wrong = {
        **HOSTS,
        "no role": ({"role": 1}, {"role"}),
        "tags": ({"partial": "tag"}, {"partial"}),
        "no tags": ({"partial": []}, {"partial"}),
        "variables": ({"extra_vars": []}, {"extra_vars"}),
    }


class TestCheckByPing(ActionContract):
    kind: ClassVar[type[Action]] = Check
    wrong = {
        **HOSTS,
        "fewer than none": ({"retries": -1}, {"retries"}),
        "before": ({"interval": -1}, {"interval"}),
    }


class TestCheckByCommand(TestCheckByPing):
    metadata: ClassVar[Mapping[str, Any]] = {"command": "systemctl is-system-running", "retries": 5}


class TestReboot(ActionContract):
    kind: ClassVar[type[Action]] = Reboot
    wrong = {**HOSTS, "nothing": ({"command": "", "boot_id_command": ""}, {"command", "boot_id_command"})}

    def well(self, wanted: Operate, times: int) -> Mapping[str, Any]:
        """It is back the second time that somebody looks."""
        return {**super().well(wanted, times), "stdout": "new\n" if times > 2 else "old\n"}


class TestDummy(ActionContract):
    kind: ClassVar[type[Action]] = Dummy
    operates = False
    metadata: ClassVar[Mapping[str, Any]] = {"seconds": 3}
    wrong = {**HOSTS, "before": ({"seconds": -1}, {"seconds"}), "fail": ({"fail": "often"}, {"fail"})}
