"""A line for the shells of hosts."""

from collections.abc import Mapping
from typing import Any

from pydantic.dataclasses import dataclass

from labctl.maintenance.action import Action, Done, Failed, Operate, View, Wait
from labctl.maintenance.actions.options import Repeatable, Text, numbered, read, trouble


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options(Repeatable):
    """The metadata of the action."""

    #: It goes to the hosts as it is: nothing is filled in, and what the session has downloaded is not on them.
    command: Text


class Command(Action):
    """Run a command; it has failed if it did on any host."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Take the metadata."""
        self.options = read(Options, metadata)

    def next(self, view: View) -> Operate | Wait | Done | Failed:
        """Run it once, or until it has come to an end."""
        if self.options.is_over(view):
            return Done() if view.outcomes[-1].ok else Failed(trouble(view.outcomes[-1]))
        hosts = self.options.targets(view)
        arguments = {"command": self.options.command}
        return Operate(numbered("command", view), "execute", hosts, arguments) if hosts else Done()
