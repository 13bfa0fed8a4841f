"""What the workflows of the lab read in a session's ``metadata``; everything else there is for projects and actions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Values of the hint ``no_answer``: what becomes of the session if a project does not answer in time.
FAIL, WAIT = "fail", "wait"
#: Values of the hint ``gate``: how a host is found well after its actions, where it has no action of type check.
PING, NONE = "ping", "none"

#: Seconds that no time of a hint may reach.
MOST = 365 * 86400


@dataclass(frozen=True)
class Hints:
    """The hints of a session."""

    #: How many of its hosts may be out of service at a time.
    max_unavailable: int = 1
    no_answer: str = FAIL
    gate: str = PING
    #: Seconds for which a host that is out of service may be in use; None: as long as it is.
    host_timeout: float | None = None


def read(metadata: Mapping[str, Any]) -> Hints:
    """Read the hints; what is wrong is as if it was not there: :func:`mistakes` has told it before."""
    wrong = {mistake.partition(":")[0] for mistake in mistakes(metadata)}
    known = Hints.__dataclass_fields__.keys()
    return Hints(**{key: value for key, value in metadata.items() if key in known and key not in wrong})


def mistakes(metadata: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the hints, a line each."""
    wrong = []
    most = metadata.get("max_unavailable", 1)
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        wrong.append("max_unavailable: must be a whole number, 1 or more")
    for key, words in (("no_answer", (FAIL, WAIT)), ("gate", (PING, NONE))):
        if metadata.get(key, words[0]) not in words:
            wrong.append(f"{key}: must be one of {', '.join(words)}")
    longest = metadata.get("host_timeout")
    if longest is not None and (
        not isinstance(longest, int | float) or isinstance(longest, bool) or not 0 < longest < MOST
    ):
        wrong.append("host_timeout: must be a number of seconds, more than 0 and less than a year")
    return wrong
