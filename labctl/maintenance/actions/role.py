"""A role that is applied to hosts."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from labctl.maintenance.action import Action, Done, Failed, Operate, View, Wait
from labctl.maintenance.actions.options import Repeatable, Text, numbered, read, trouble


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options(Repeatable):
    """The metadata of the action."""

    role: Text
    #: Tags: only what has one of them is applied.
    partial: Annotated[list[Text], Field(min_length=1)] | None = None
    extra_vars: dict[str, Any] = Field(default_factory=dict)
    # Roles say what is to be so, not what is to be done.
    repeat: bool = True


class Role(Action):
    """Apply a role; what the session has downloaded is its extra variable ``downloads``: paths by URLs.

    The paths are those of the machine that applies the role, so that it can copy the files to its hosts.
    """

    timeout = 7200

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Take the metadata."""
        self.options = read(Options, metadata)

    def next(self, view: View) -> Operate | Wait | Done | Failed:
        """Apply it once, or until that has come to an end."""
        if self.options.is_over(view):
            return Done() if view.outcomes[-1].ok else Failed(trouble(view.outcomes[-1]))
        hosts = self.options.targets(view)
        if not hosts:
            return Done()
        downloads = {"downloads": dict(view.downloads)} if view.downloads else {}
        arguments = {
            "role": self.options.role,
            "partial": self.options.partial,
            "extra_vars": {**downloads, **self.options.extra_vars},
        }
        return Operate(numbered("role", view), "deploy", hosts, arguments)
