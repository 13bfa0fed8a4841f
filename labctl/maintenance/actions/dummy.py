"""Nothing at all: for tests and demonstrations."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from labctl.maintenance.action import Action, Done, Failed, Operate, View, Wait
from labctl.maintenance.actions.options import OnHosts, read


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options(OnHosts):
    """The metadata of the action."""

    #: How long it does nothing.
    seconds: Annotated[float, Field(ge=0, le=7 * 24 * 3600)] = 0
    #: Whether it fails, or how often it does before it goes well.
    fail: Any = False
    reason: str = "it was told to fail"

    @field_validator("fail")
    @classmethod
    def _fail(cls, value: Any) -> bool | int:
        if not isinstance(value, int) or value < 0:
            raise ValueError("must be true, false, or a number of times")
        return value


class Dummy(Action):
    """Do nothing for a while, and go well or fail, as it is told."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Take the metadata."""
        self.options = read(Options, metadata)

    def next(self, view: View) -> Operate | Wait | Done | Failed:
        """Wait, and then say how it went."""
        options = self.options
        if not options.targets(view):
            return Done()
        left = view.started + timedelta(seconds=options.seconds) - view.now
        if left > timedelta():
            return Wait(left.total_seconds(), "for nothing")
        fails = options.fail if isinstance(options.fail, bool) else view.attempt <= options.fail
        return Failed(options.reason) if fails else Done()
