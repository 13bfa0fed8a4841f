"""What labctl's own actions have in common: reading their metadata, choosing their hosts, saying what went wrong."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from labctl.maintenance.action import Outcome, View

Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
Positive = Annotated[float, Field(gt=0, le=7 * 24 * 3600)]
#: How much of what a host has said goes into the reason of a failure.
LONGEST = 300

Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Options:
    """What every action takes."""

    #: Seconds after which it has failed; None: its kind says.
    timeout: Positive | None = None


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class OnHosts(Options):
    """What every action takes that does something on hosts."""

    #: For ``host`` actions: those of the session's hosts that it is for. For others: where it is done. None: all.
    hosts: Annotated[list[Text], Field(min_length=1)] | None = None

    def targets(self, view: View) -> tuple[str, ...]:
        """Say on which hosts it is done now."""
        if view.host:
            return (view.host,) if self.hosts is None or view.host in self.hosts else ()
        return view.hosts if self.hosts is None else tuple(dict.fromkeys(self.hosts))


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Repeatable(OnHosts):
    """What every action takes whose operation might be carried out twice."""

    #: Whether it is begun again when its worker was lost or stopped, and nobody knows how far it got.
    repeat: bool = False

    def is_over(self, view: View) -> bool:
        """Tell whether the last operation has ended, and is not to be begun again."""
        return bool(view.outcomes) and not (self.repeat and view.outcomes[-1].unfinished)


def numbered(step: str, view: View) -> str:
    """Name a step that may be there already."""
    return f"{step}-{len(view.outcomes) + 1}" if view.outcomes else step


def read(kind: type[Read], metadata: Mapping[str, Any]) -> Read:
    """Make the options of an action; raises ValueError with one line for each mistake, naming the key."""
    try:
        return TypeAdapter(kind).validate_python(dict(metadata))
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ValueError("\n".join(lines)) from None


def trouble(outcome: Outcome) -> str:
    """Say why an operation went wrong: what the job says, and the first host that has something to tell."""
    for host, output in outcome.outputs.items():
        said = str(output.get("message") or output.get("stderr") or output.get("stdout") or "").strip()
        if output.get("status") in FAILING and said:
            return f"{outcome.error}: {host}: {said[-LONGEST:]}"
    return outcome.error


#: The numbers of the protocol for hosts that failed or could not be reached.
FAILING = (3, 4)
