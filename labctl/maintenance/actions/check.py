"""Whether hosts are well."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from labctl.maintenance.action import Action, Done, Failed, Operate, View, Wait
from labctl.maintenance.actions.options import OnHosts, Positive, Text, read, trouble


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options(OnHosts):
    """The metadata of the action."""

    #: A command that succeeds on a host that is well; None: it is enough that the host answers.
    command: Text | None = None
    #: How often it is asked again, and after how many seconds.
    retries: Annotated[int, Field(ge=0, le=1000)] = 2
    interval: Annotated[float, Field(ge=0, le=3600)] = 5
    #: Seconds that one question may take.
    patience: Positive = 60


class Check(Action):
    """Ask hosts how they are, several times if need be, until all are well at once."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Take the metadata."""
        self.options = read(Options, metadata)

    def next(self, view: View) -> Operate | Wait | Done | Failed:
        """Ask, or wait before asking again."""
        options = self.options
        hosts = options.targets(view)
        tries = len(view.outcomes)
        if not hosts or (tries and view.outcomes[-1].ok):
            return Done()
        if tries > options.retries:
            return Failed(trouble(view.outcomes[-1]))
        if tries:
            left = view.outcomes[-1].ended + timedelta(seconds=options.interval) - view.now
            if left > timedelta():
                return Wait(left.total_seconds(), f"to be asked again: {trouble(view.outcomes[-1])}")
        step = f"check-{tries + 1}"
        if options.command is None:
            return Operate(step, "ping", hosts, timeout=options.patience)
        return Operate(step, "execute", hosts, {"command": options.command}, timeout=options.patience)
