"""The protocols labctl speaks, as data: which status each kind of error has, and the shape of an error's body."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from labctl import errors

STATUSES: Mapping[type[errors.LabError], int] = {
    errors.Invalid: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.Conflict: 409,
    errors.Exhausted: 503,
    errors.Unavailable: 503,
}


def message_body(message: str) -> Any:
    """``{"message": "..."}``."""
    return {"message": message}


@dataclass(frozen=True)
class Dialect:
    """How one protocol says that something went wrong; ``statuses`` holds only what differs from :data:`STATUSES`."""

    name: str
    statuses: Mapping[type[errors.LabError], int] = field(default_factory=dict)
    body: Callable[[str], Any] = message_body
    #: Whether an error's message is the whole body, as text/plain.
    plain: bool = False
    #: What is said of a method that is not there, if clients know other words for it than labctl's.
    not_allowed: str | None = None

    def status(self, error: errors.LabError) -> int:
        """Find the status of an error by walking its class's ancestors."""
        for kind in type(error).__mro__:
            if status := self.statuses.get(kind) or STATUSES.get(kind):
                return status
        return 500


#: labctl's own endpoints, and every path that belongs to no tree.
LABCTL = Dialect("labctl")
#: runs, machines and queues: "already exists" is a 400 there, as teuthology's reporter expects.
PADDLES = Dialect("paddles", {errors.Conflict: 400})
#: repos, builds and storage nodes: "nothing is ready yet" is a 504, which build jobs poll for; errors are plain text.
SHAMAN = Dialect("shaman", {errors.Exhausted: 504}, plain=True)
#: VMs and their tokens: a failure says only that it is one, and 503 that not enough VMs are ready.
VMPOOLER = Dialect("vmpooler", body=lambda message: {"ok": False, "message": message})
#: Operations on hosts: texts are escaped for HTML, as their clients have always got them.
EXED = Dialect(
    "exed",
    body=lambda message: {"message": escape(message, quote=False)},
    not_allowed="Specified method is invalid for this resource",
)
#: Maintenance sessions: too many of them are a 509.
FENIX = Dialect("fenix", {errors.Exhausted: 509}, body=lambda message: {"error": message})
