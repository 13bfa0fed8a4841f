"""A lab for Ansible in a directory: an inventory of many names for one sshd, roles, and services that are files."""

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.sshd import Sshd

DEPLOY = """
- name: deploy {{ _role }}
  hosts: "{{ _targets }}"
  gather_facts: false
  roles:
    - "{{ _role }}"
"""
ROLES = {
    "web": """
- name: first of {{ given | default('nothing') }}
  ansible.builtin.debug:
    msg: "{{ given | default('nothing') }}"
- name: change something
  ansible.builtin.command: "true"
  notify: afterwards
- name: nothing to do
  ansible.builtin.command: "true"
  when: false
- name: marked
  ansible.builtin.debug:
    msg: only this
  tags: [reconfig]
""",
    "broken": """
- name: first
  ansible.builtin.debug:
- name: break
  ansible.builtin.shell: echo it is broken >&2; exit 3
- name: never done
  ansible.builtin.debug:
""",
    "forgiving": """
- name: ignored
  ansible.builtin.command: "false"
  ignore_errors: true
- block:
    - name: rescued
      ansible.builtin.command: "false"
  rescue:
    - name: instead
      ansible.builtin.debug:
""",
    "discreet": """
- name: hidden
  ansible.builtin.command:
    argv: [echo, "{{ password }}"]
  no_log: true
""",
    "long": """
- name: for long
  ansible.builtin.shell: "echo $$ > {{ file }}; sleep 1000; true"
""",
    "chatty": "".join(f"- name: step {number}\n  ansible.builtin.debug:\n" for number in range(60)),
    "malformed": "- name: [",
}
MODULE = """#!/usr/bin/python
import json
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec={"name": {}, "state": {}})
with open(%r, "a") as file:
    file.write(json.dumps(module.params) + chr(10))
if module.params["name"] == "broken":
    module.fail_json(msg="it does not start")
module.exit_json(changed=module.params["state"] != "started")
"""


class Lab:
    """A working directory; ``hosts`` are those that answer, ``dead`` is one that does not."""

    hosts = ("web1", "web2", "web:3", "fe80::1", "[v6]:22", "a,b", "!x", "--list")

    def __init__(self, directory: Path, sshd: Sshd | None) -> None:
        self.directory = directory
        self.playbooks = directory / "playbooks"
        self.services = directory / "services"
        (self.playbooks / "library").mkdir(parents=True)
        (self.playbooks / "_deploy.yml").write_text(DEPLOY)
        for name, tasks in ROLES.items():
            self.write_role(name, tasks)
        handlers = self.playbooks / "roles/web/handlers"
        handlers.mkdir()
        (handlers / "main.yml").write_text("- name: afterwards\n  ansible.builtin.debug:\n")
        for name in ("service", "systemd", "sysvinit"):
            (self.playbooks / f"library/{name}.py").write_text(MODULE % str(self.services))
        (directory / "ansible.cfg").write_text("[defaults]\n")
        common = self.common = self._common(sshd)
        hosts: dict[str, dict[str, Any]] = {name: {} for name in self.hosts}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            hosts["dead"] = {"ansible_connection": "ssh", "ansible_port": probe.getsockname()[1]}
        hosts["here"] = {"ansible_connection": "local"}
        self.write_inventory(hosts, common)

    def _common(self, sshd: Sshd | None) -> dict[str, Any]:
        if sshd is None:
            return {"ansible_connection": "local"}
        options = f"-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={sshd.known_hosts}"
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": sshd.port,
            "ansible_user": sshd.user,
            "ansible_ssh_private_key_file": str(sshd.key),
            "ansible_ssh_common_args": options,
            "ansible_python_interpreter": sys.executable,
        }

    def write_role(self, name: str, tasks: str) -> None:
        (self.playbooks / f"roles/{name}/tasks").mkdir(parents=True)
        (self.playbooks / f"roles/{name}/tasks/main.yml").write_text(tasks)

    def write_inventory(self, hosts: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any]) -> None:
        """Write it as a program: its names may hold any characters."""
        data = {
            "lab": {"hosts": list(hosts), "vars": dict(common)},
            "webs": {"hosts": [name for name in hosts if name.startswith("web")]},
            "_meta": {"hostvars": hosts},
        }
        inventory = self.directory / "inventory"
        inventory.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(data)}\nEND\n")
        inventory.chmod(0o755)

    @property
    def services_asked_for(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.services.read_text().splitlines()]
