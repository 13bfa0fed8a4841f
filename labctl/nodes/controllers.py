"""``/api/nodes``: storage nodes."""

import threading
from functools import partial
from typing import Any

from labctl import clock
from labctl.db import Actor, reading, transaction
from labctl.errors import Invalid, NotFound, Unavailable
from labctl.http import render
from labctl.http.resource import Mount, Request, Resource
from labctl.nodes import health, service, wire
from labctl.nodes.service import Turn
from labctl.settings import Settings

#: For how much longer than its checks take a request keeps its claims, if it is killed and cannot let go of them.
_MARGIN = 2.0
#: How many nodes may be registering at once in one web process: each that is silent holds a thread.
MOST_CHECKED = 16


class NodesController(Resource):
    """All storage nodes."""

    def __init__(self, settings: Settings, mount: Mount) -> None:
        """Take what applies to this mount."""
        self.settings = settings
        self.mount = mount
        self.children = {"next": NextController(settings)}
        self.checking = threading.BoundedSemaphore(MOST_CHECKED)

    def item(self, segment: str) -> Resource | None:
        """One node."""
        return NodeController(self.settings, segment, self.checking)

    def get(self, request: Request) -> Any:
        """Give all nodes, by their hosts."""
        with reading() as session:
            nodes = service.listed(session)
        return wire.nodes_to_wire(nodes)


class NodeController(Resource):
    """One storage node."""

    def __init__(self, settings: Settings, segment: str, checking: threading.BoundedSemaphore) -> None:
        """Note the host; the node is looked for by the methods."""
        self.settings = settings
        self.segment = segment
        self.checking = checking

    def get(self, request: Request) -> Any:
        """Give all that is known of the node."""
        with reading() as session:
            node = service.find(session, self._known_host())
        return wire.node_to_wire(node)

    def post(self, request: Request) -> Any:
        """Register the node, or ask it again whether it is well; the body may be anything (clients send ``{}``)."""
        host, began = wire.host_from_wire(self.segment), clock.now()
        settings = self.settings
        if not self.checking.acquire(blocking=False):
            raise Unavailable("too many storage nodes are being checked at the moment")
        try:
            troubles = health.check([host], settings.health_check_timeout, verify=settings.health_check_verify)
        finally:
            self.checking.release()
        health.log_failed(troubles)
        with transaction(request.actor()) as session:
            service.register(session, host, troubles[host], began)
        return {}

    def delete(self, request: Request) -> Any:
        """Remove the node: it is not given out, nor asked, any more."""
        with transaction(request.actor()) as session:
            service.remove(session, self._known_host())
        return {}

    def _known_host(self) -> str:
        """Give the host; what can be none is not known."""
        try:
            return wire.host_from_wire(self.segment)
        except Invalid as error:
            raise NotFound("there is no such storage node") from error


class NextController(Resource):
    """The node whose turn it is."""

    acts = True

    def __init__(self, settings: Settings) -> None:
        """Take the limits."""
        self.settings = settings

    def get(self, request: Request) -> Any:
        """Give the URL of a node that is well, the least recently used, as text without quotes: jobs paste it."""
        settings, actor = self.settings, request.actor()
        turn = Turn(settings.health_check_timeout + _MARGIN)

        found = health.search(
            partial(_claim, actor, turn), settings.health_check_timeout, verify=settings.health_check_verify
        )
        health.log_failed(found.failed)
        with transaction(actor) as session:
            given = service.end(session, turn, found.healthy, found.failed, settings.health_check_retries)
        if found.healthy is None:
            raise NotFound("There are no healthy storage nodes available.")
        if not given:
            raise Unavailable("the storage node whose turn it was has just been removed", retry_after=1)
        return render.plain(wire.url_to_wire(found.healthy))


def _claim(actor: Actor, turn: Turn, count: int) -> list[str]:
    """Claim nodes in a transaction of its own: none is open while they are asked."""
    while True:
        with transaction(actor) as session:
            hosts = service.claim(session, turn, count)
        if hosts is not None:
            return hosts
