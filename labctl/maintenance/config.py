"""Which workflows and actions there are."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from labctl import plugins
from labctl.errors import Invalid
from labctl.maintenance.action import Action
from labctl.maintenance.workflow import Workflow

WORKFLOWS, ACTIONS = "labctl.workflows", "labctl.actions"


def workflows() -> list[str]:
    """List the names of the workflows that are installed."""
    return plugins.installed(WORKFLOWS)


@cache
def workflow(name: str) -> Workflow:
    """Give a workflow; raises :class:`Invalid` that lists what is installed."""
    made: Workflow = _load(WORKFLOWS, name)()
    return made


def actions() -> list[str]:
    """List the names of the actions that are installed."""
    return plugins.installed(ACTIONS)


def action(name: str, metadata: Mapping[str, Any]) -> Action:
    """Make an action; raises :class:`Invalid` that lists what is installed, or a line for each mistake."""
    kind = _load(ACTIONS, name)
    try:
        made: Action = kind(metadata)
    except ValueError as error:
        raise Invalid(str(error)) from error
    return made


@cache
def _load(group: str, name: str) -> Any:
    try:
        return plugins.load(group, name)
    except ImportError as error:
        raise Invalid(f"the {group} plugin {name} cannot be loaded: {error}") from error
