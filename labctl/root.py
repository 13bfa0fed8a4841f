"""THE TABLE OF CONTENTS: every tree of URLs, where it is mounted, and whose dialect it speaks."""

from typing import Any

from labctl import __version__
from labctl.db import reading
from labctl.events.controllers import EventsController
from labctl.http.dialects import EXED, FENIX, PADDLES, SHAMAN, VMPOOLER
from labctl.http.health import HealthcheckController, HealthController
from labctl.http.resource import Mount, Request, Resource
from labctl.http.waiting import Waiting
from labctl.machines.controllers import MachinesController
from labctl.maintenance.controllers import SessionsController
from labctl.nodes.controllers import NodesController
from labctl.queues.controllers import QueueController
from labctl.remote.controllers import RemoteController
from labctl.remote.controllers import Tree as RemoteTree
from labctl.remote.follow import Hub
from labctl.repos import queries as repos_queries
from labctl.repos.controllers import BuildsController, ReposController, SearchController
from labctl.runs.controllers import RunsByNameController, RunsController
from labctl.settings import Settings
from labctl.tokens.controllers import TokensController
from labctl.vms import queries as vms_queries
from labctl.vms import reports as vms
from labctl.vms.catalog import Catalog
from labctl.vms.controllers import OnDemandController, Tree, VMsController
from labctl.vms.wire import V1, V2, V3, Version


def tree(settings: Settings) -> Resource:
    """Build the whole tree.

    The rule a user learns: every URL that one of the protocols documents works at its documented path, and everything
    is under ``/api/`` as well. One tree is one set of controllers; a mount chooses the shapes on the wire.
    """
    runs = Mount("runs", PADDLES)
    machines = Mount("machines", PADDLES)
    queue = Mount("queue", PADDLES)
    repos = Mount("repos", SHAMAN)
    remote = RemoteTree(settings, Mount("remote", EXED), Hub(settings.remote_max_followers))
    maintenance = Mount("maintenance", FENIX)
    waiting = Waiting(settings)
    return IndexController(
        Mount(),
        {
            # Test runs and their jobs, lab machines, queues: as teuthology and pulpito speak today (paddles).
            "runs": RunsController(settings, runs),
            "nodes": MachinesController(settings, machines),
            "queue": QueueController(settings, queue),
            # Operations on hosts, their jobs and their output (EXEd).
            **remote.children(),
            # Sessions that walk hosts through maintenance (fenix), and the same below /api.
            "v1": TreesController(Mount(None, FENIX), {"maintenance": SessionsController(settings, maintenance)}),
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
                    "remote": RemoteController(remote),
                    "maintenance": SessionsController(settings, maintenance),
                    "events": EventsController(settings, Mount("events"), waiting),
                    # VMs out of warm pools, and users' tokens (vmpooler), in all versions of its protocol.
                    **_vms(settings, V1),
                    "v1": VersionController(Mount(None, VMPOOLER), _vms(settings, V1)),
                    "v2": VersionController(Mount(None, VMPOOLER), _vms(settings, V2)),
                    "v3": VersionController(Mount(None, VMPOOLER), _vms(settings, V3)),
                },
            ),
        },
    )


def _vms(settings: Settings, version: Version) -> dict[str, Resource]:
    tree = Tree(settings, Mount("vms", VMPOOLER), Catalog(settings.pools, settings.vm_domain), version)
    return {
        "vm": VMsController(tree),
        "ondemandvm": OnDemandController(tree),
        "token": TokensController(settings, Mount(None, VMPOOLER), vms_queries.running_of_token),
        "status": vms.StatusController(tree),
        "summary": vms.SummaryController(tree),
        "poolstat": vms.PoolstatController(tree),
        "totalrunning": vms.TotalRunningController(tree),
        "config": vms.ConfigController(tree),
        "full_config": vms.FullConfigController(tree),
        "poolreset": vms.PoolResetController(tree),
    }


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


class TreesController(IndexController):
    """``/v1``: what there is."""

    def get(self, request: Request) -> Any:
        """List the trees, with the version."""
        return {"trees": sorted(self.children), "version": __version__}


class VersionController(IndexController):
    """``/api/v1`` and the like: one version of a protocol."""

    def get(self, request: Request) -> Any:
        """List the trees."""
        return {"ok": True, "trees": sorted(self.children)}
