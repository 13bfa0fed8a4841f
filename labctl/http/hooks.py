"""Around every request: its id, its credentials, its log line, and the one place where errors become answers."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from pecan.core import RoutingState
from pecan.hooks import PecanHook
from webob import Response

from labctl import logs
from labctl.errors import Forbidden, LabError, MethodNotAllowed, Unauthenticated, Unavailable
from labctl.http import render
from labctl.http.credentials import Claim, Identity, claim_of
from labctl.http.dialects import Dialect
from labctl.http.resource import Request

log = logging.getLogger("labctl.http")

_OUR_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_READS = frozenset(("GET", "HEAD", "OPTIONS"))
#: What a token looks like; some clients have to put it into the URL.
_TOKEN = re.compile(r"(?<![A-Za-z0-9])[a-y][a-z0-9]{31}(?![A-Za-z0-9])")


class RequestHook(PecanHook):
    """Pecan calls its methods in the order in which they stand here."""

    def __init__(self, authenticate: Callable[[Claim], Identity], anonymous: Mapping[str, str]) -> None:
        """``authenticate`` raises Unauthenticated; ``anonymous`` is the setting: a tree to write, read or none."""
        self.authenticate = authenticate
        self.anonymous = anonymous

    def on_route(self, state: RoutingState) -> None:
        """Give the request its id: the client's or the proxy's, if it has a sane one."""
        request: Request = state.request
        given = request.environ.get("HTTP_X_REQUEST_ID", "")
        request.environ["labctl.began"] = time.perf_counter()
        request.environ["labctl.request_id"] = request_id = given if _OUR_ID.fullmatch(given) else secrets.token_hex(8)
        logs.request_id.set(request_id)

    def before(self, state: RoutingState) -> None:
        """Find out who asks and whether they may."""
        request: Request = state.request
        reads = request.method == "OPTIONS" or (request.method in _READS and not state.controller.acts)
        if not reads:
            # Before any password is looked at: that counts wrong ones, and has the browser ask its user for another.
            _refuse_other_sites(request)
        claim = claim_of(request)
        identity = self.authenticate(replace(claim, address=request.address())) if claim else None
        request.environ["labctl.identity"] = identity
        tree = request.mount.tree
        if tree is None:
            return
        open_to_all = self.anonymous[tree]
        if open_to_all == "write" or (open_to_all == "read" and reads):
            return
        if identity is None:
            raise Unauthenticated
        if not identity.may(tree):
            raise Forbidden(f"{identity.name} does not have the right {tree!r}")

    def on_error(self, state: RoutingState, error: Exception) -> Response:
        """Say what went wrong in the tree's dialect; what nobody expected is logged and answers the request's id."""
        request: Request = state.request
        dialect = request.mount.dialect
        if not isinstance(error, LabError):
            log.error("request_failed", exc_info=error, extra={"method": request.method, "path": _path(request)})
            message = f"internal error; the log has more under request id {request.request_id}"
            return _answer(500, dialect, message)
        message = error.message if error.field is None else f"{error.field}: {error.message}"
        if isinstance(error, MethodNotAllowed):
            message = dialect.not_allowed or message
        answer = _answer(dialect.status(error), dialect, message)
        match error:
            case Unauthenticated():
                answer.headers["WWW-Authenticate"] = 'Basic realm="labctl"'
                if error.retry_after is not None:
                    answer.headers["Retry-After"] = str(error.retry_after)
            case MethodNotAllowed():
                answer.headers["Allow"] = ", ".join(error.allowed)
            case Unavailable():
                answer.headers["Retry-After"] = str(error.retry_after)
                cause = str(error.__cause__).partition("\n")[0] if error.__cause__ else "-"
                log.warning("unavailable", extra={"reason": error.message, "cause": cause})
        return answer

    def after(self, state: RoutingState) -> None:
        """Write the request's log line."""
        request: Request = state.request
        state.response.headers["X-Request-ID"] = request.request_id
        if request.method == "GET" and getattr(state.controller, "acts", False):
            # Proxies may keep answers to GET: the next client would be told of what was not done for it.
            state.response.headers["Cache-Control"] = "no-store"
        identity = request.identity
        log.info(
            "request_done",
            extra={
                "method": request.method,
                "path": _path(request),
                "status": state.response.status_int,
                "ms": round((time.perf_counter() - request.environ["labctl.began"]) * 1000, 1),
                "user": identity.name if identity else "-",
                "address": request.address(),
            },
        )


def _refuse_other_sites(request: Request) -> None:
    """Refuse what a page of another site has a browser ask for: it adds the credential that its user once gave it.

    Only browsers say which site it is, and only over HTTPS or on their own machine.
    """
    if request.environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
        raise Forbidden("a page of another site has your browser ask for this")


def _path(request: Request) -> str:
    """Give the path for a log line, without any token."""
    return _TOKEN.sub("***", request.path_text())


def _answer(status: int, dialect: Dialect, message: str) -> Response:
    if dialect.plain:
        return render.plain(message, status)
    return render.Answer(status=status, body=render.dumps(dialect.body(message)))
