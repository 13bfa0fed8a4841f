"""THE TABLE OF CONTENTS: every tree of URLs, where it is mounted, and whose dialect it speaks."""

from typing import Any

from labctl import __version__
from labctl.db import reading
from labctl.events.controllers import EventsController
from labctl.http.dialects import PADDLES, SHAMAN
from labctl.http.health import HealthcheckController, HealthController
from labctl.http.resource import Mount, Request, Resource
from labctl.http.waiting import Waiting
from labctl.machines.controllers import MachinesController
from labctl.nodes.controllers import NodesController
from labctl.queues.controllers import QueueController
from labctl.repos import queries as repos_queries
from labctl.repos.controllers import BuildsController, ReposController, SearchController
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
    repos = Mount("repos", SHAMAN)
    waiting = Waiting(settings)
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
                    # Package repositories, the builds they come from, and the search over them (shaman).
                    "repos": ReposController(settings, repos),
                    "builds": BuildsController(settings, repos),
                    "search": SearchController(settings, repos, waiting),
                    "nodes": NodesController(settings, Mount("nodes", SHAMAN)),
                    "events": EventsController(settings, Mount("events"), waiting),
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
        """List the trees, with the version; ``repos`` are the projects, as clients of the repository index know it."""
        with reading() as session:
            projects = repos_queries.projects(session)
        return {"repos": projects, "trees": sorted(self.children), "version": __version__}
