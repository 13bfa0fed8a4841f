"""The base of every controller: a tree of resources, walked along the decoded segments of the path."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlsplit

import pecan
from webob import Response

from labctl.db import Actor
from labctl.errors import MethodNotAllowed, NotFound
from labctl.http.credentials import Identity
from labctl.http.dialects import LABCTL, Dialect
from labctl.http.render import Answer

_HANDLERS = {"GET": "get", "HEAD": "get", "POST": "post", "PUT": "put", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Mount:
    """A place in the URL space: which tree of rights applies there (None: open to all) and which dialect is spoken."""

    tree: str | None = None
    dialect: Dialect = LABCTL


_NOWHERE = Mount()
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")


class Request(pecan.Request):
    """A request as controllers see it; the bodies of requests are read by :mod:`labctl.http.body` alone."""

    @property
    def mount(self) -> Mount:
        """The mount that the path led into; before that, labctl's own dialect and no rights."""
        return self.environ.get("labctl.mount", _NOWHERE)

    @property
    def identity(self) -> Identity | None:
        """Who asks, if the request has a credential."""
        return self.environ.get("labctl.identity")

    @property
    def request_id(self) -> str:
        """What the log lines, the events and the errors of this request have in common."""
        return self.environ["labctl.request_id"]

    def actor(self) -> Actor:
        """Say who makes the changes of this request, for the log of events."""
        return Actor(self.identity.name if self.identity else "anonymous", self.request_id)

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters of the query; what is no UTF-8 is there as lone surrogates, which labctl.http.body refuses."""
        found: dict[str, str] | None = self.environ.get("labctl.query")
        if found is None:
            pairs = parse_qsl(self.environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="surrogateescape")
            found = self.environ["labctl.query"] = dict(pairs)
        return found

    def own_url(self) -> str:
        """Give the URL that was asked for, without its query, and encoded as it was: a name may hold a slash."""
        raw: str = self.environ.get("RAW_URI", "")
        sent = raw.partition("?")[0] if raw.startswith("/") and raw.isascii() else str(self.path)
        return self.server_url() + sent

    def path_text(self) -> str:
        """Give the decoded path for a log line, whatever bytes it holds."""
        raw: str = self.environ.get("RAW_URI", "").partition("?")[0]
        path = unquote_to_bytes(raw) if raw else str(self.environ.get("PATH_INFO", "")).encode("latin-1")
        return path.decode(errors="backslashreplace")

    def base_url(self) -> str:
        """Give the URL under which the tree was asked for, without a trailing slash."""
        return self.server_url() + self.environ["labctl.mounted_at"]

    def server_url(self) -> str:
        """Give the URL of this server as the client knows it; a Host that is none must not end up in an answer."""
        if _HOST.fullmatch(self.environ.get("HTTP_HOST", "")):
            return self.host_url
        return f"{self.scheme}://{self.environ['SERVER_NAME']}:{self.environ['SERVER_PORT']}"

    def address(self) -> str:
        """Give the address of the client: a proxy on this machine says whom it speaks for."""
        peer: str = self.environ.get("REMOTE_ADDR", "-")
        if peer in ("127.0.0.1", "::1", "") and (forwarded := self.environ.get("HTTP_X_FORWARDED_FOR")):
            return str(forwarded).rpartition(",")[2].strip()
        return peer


class Resource:
    """A thing with a URL: define ``get``, ``post``, ``put``, ``patch``, ``delete`` for the methods it answers.

    ``children`` are the literal segments below it; they win over :meth:`item`, which answers for any other segment
    and runs no query. HEAD is answered by ``get`` unless that acts, OPTIONS and 405 by the methods that exist. Nothing
    of the path is ever looked up as an attribute, and a slash at the end makes no difference.
    """

    mount: Mount | None = None
    children: Mapping[str, "Resource"] = {}
    #: Whether its GET changes something, as some of the old protocols have it; then it needs the right to write, is not
    #: kept by any cache, and there is no HEAD: who only asks what is there must not set it off.
    acts = False
    #: Pecan keeps its per-controller configuration (hooks) here.
    _pecan: ClassVar[dict[str, Any]] = {}

    def item(self, segment: str) -> "Resource | None":
        """Give the resource that ``segment`` stands for, or None if no such URL can exist."""
        return None

    def allowed(self) -> list[str]:
        """List the methods that this resource answers, for the Allow header."""
        methods = [method for method in _HANDLERS if self._answer_to(method)]
        return sorted([*methods, "OPTIONS"]) if methods else []

    def handler(self, method: str) -> Callable[[Request], Any]:
        """Give what answers ``method``; raises :class:`MethodNotAllowed`."""
        handler = self._answer_to(method)
        if handler is not None:
            return handler
        if not self.allowed():
            raise NotFound
        if method == "OPTIONS":
            return lambda request: options(self)
        raise MethodNotAllowed(self.allowed())

    def _answer_to(self, method: str) -> Callable[[Request], Any] | None:
        if method not in _HANDLERS or (method == "HEAD" and self.acts):
            return None
        return getattr(self, _HANDLERS[method], None)


def options(resource: Resource) -> Response:
    """Answer OPTIONS."""
    return Answer(status=204, content_type=None, headerlist=[("Allow", ", ".join(resource.allowed()))])


def locate(root: Resource, request: Request) -> Resource:
    """Walk from ``root`` to the resource of the request's path, noting the mount on the way; raises NotFound."""
    node: Resource = root
    segments = path_segments(request.environ)
    if segments and segments[-1] == "":
        segments.pop()
    for depth, segment in enumerate(segments):
        child = node.children.get(segment) or (node.item(segment) if segment and "\0" not in segment else None)
        if child is None:
            raise NotFound
        if child.mount is not None:
            request.environ["labctl.mount"] = child.mount
            request.environ["labctl.mounted_at"] = "/" + "/".join(segments[: depth + 1])
        node = child
    return node


def path_segments(environ: Mapping[str, Any]) -> list[str]:
    """Decode the segments of the path one by one, so that a name may hold an encoded slash.

    gunicorn hands the undecoded target over as RAW_URI; where that is missing (another server), PATH_INFO must do.
    Raises :class:`NotFound` for a path that is not UTF-8, or no path.
    """
    try:
        if raw := environ.get("RAW_URI"):
            path = raw.partition("?")[0] if raw.startswith("/") else urlsplit(raw).path
            if not path.isascii():
                # Sent as it is, by clients that do not encode; the server hands bytes over as Latin-1.
                path = path.encode("latin-1").decode()
            if "%" not in path:
                return path.split("/")[1:]
            return [unquote(segment, errors="strict") for segment in path.split("/")[1:]]
        return environ.get("PATH_INFO", "").encode("latin-1").decode().split("/")[1:]
    except ValueError as error:
        raise NotFound from error
