"""THE TABLE OF CONTENTS: every tree of URLs, where it is mounted, and whose dialect it speaks."""

from typing import Any

from labctl import __version__
from labctl.events.controllers import EventsController
from labctl.http.dialects import PADDLES
from labctl.http.health import HealthcheckController, HealthController
from labctl.http.resource import Mount, Request, Resource
from labctl.machines.controllers import MachinesController
from labctl.queues.controllers import QueueController
from labctl.runs.controllers import RunsByNameController, RunsController
from labctl.settings import Settings


def tree(settings: Settings) -> Resource:
    """Build the whole tree.

    The rule a user learns: every URL that one of the protocols documents works at its documented path, and everything
    is under ``/api/`` as well. One tree is one set of controllers; a mount chooses the shapes on the wire.
    """
    runs = Mount("runs", PADDLES)
    machines = Mount("machines", PADDLES)
    queue = Mount("queue", PADDLES)
    return IndexController(
        Mount(),
        {
            # Test runs and their jobs, lab machines, queues: as teuthology and pulpito speak today (paddles).
            "runs": RunsController(settings, runs),
            "nodes": MachinesController(settings, machines),
            "queue": QueueController(settings, queue),
            "_health": HealthController(),
            "healthcheck": HealthcheckController(),
            "api": APIController(
                Mount(),
                {
                    # The same runs in the shapes of paddles' README: objects keyed by name.
                    "runs": RunsByNameController(settings, runs),
                    "machines": MachinesController(settings, machines),
                    "queue": QueueController(settings, queue),
                    "events": EventsController(settings, Mount("events")),
                },
            ),
        },
    )


class IndexController(Resource):
    """``/``: nothing yet for people, and ``{}`` for clients (paddles' index)."""

    def __init__(self, mount: Mount, children: dict[str, Resource]) -> None:
        """Take what lies below."""
        self.mount = mount
        self.children = children

    def get(self, request: Request) -> Any:
        """Answer ``{}``."""
        return {}


class APIController(IndexController):
    """``/api``: what there is."""

    def get(self, request: Request) -> Any:
        """List the trees, with the version; ``repos`` is the key that clients of the repository index look for."""
        return {"repos": [], "trees": sorted(self.children), "version": __version__}
