"""Answers that go on for a while: when this process has no time for them any more, and clients that take nothing."""

from collections.abc import Callable, Iterator
from errno import ECONNRESET

from webob import Response

from labctl.http.render import Answer
from labctl.http.resource import Request

#: How long a client may take nothing before its connection is closed, in seconds.
PATIENCE = 60.0

_ending: Callable[[], bool] = lambda: False  # noqa: E731


def end_when(condition: Callable[[], bool]) -> None:
    """Let streams of this process ask whether it is about to end."""
    global _ending
    _ending = condition


def ending() -> bool:
    """Tell whether this process is about to end."""
    return _ending()


def broken() -> ConnectionResetError:
    """Make the error that ends a stream before its end, so that its client sees that something is missing."""
    return ConnectionResetError(ECONNRESET, "this process cannot go on with the stream")


def stream(request: Request, parts: Iterator[bytes], content_type: str) -> Response:
    """Answer a stream that no proxy keeps to itself, and that a client which takes nothing does not keep open."""
    if connection := request.environ.get("gunicorn.socket"):
        # It is the server's own again after the request.
        connection.settimeout(PATIENCE)
    answer = Answer(app_iter=parts, content_type=content_type)
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Accel-Buffering"] = "no"
    return answer
