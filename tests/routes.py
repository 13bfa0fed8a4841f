"""Every route of labctl, found by walking the tree of labctl.root: for the tests that hold all of them to something."""

from collections.abc import Iterator
from dataclasses import dataclass

from labctl import root
from labctl.http.resource import Mount, Resource
from labctl.machines.controllers import MachineController
from labctl.maintenance.controllers import ProjectController, SessionController, SubscriptionController
from labctl.nodes.controllers import NodeController
from labctl.remote.controllers import JobController as RemoteJobController
from labctl.repos.controllers import (
    CommitBuildsController,
    CommitReposController,
    DistroReposController,
    LeafController,
    PackagesController,
    ProjectBuildsController,
    ProjectReposController,
    RefBuildsController,
    RefReposController,
    VersionController,
)
from labctl.runs.controllers import (
    ChosenRunsController,
    DateToController,
    JobController,
    LastDayController,
    RunController,
    ValuesController,
)
from labctl.settings import Settings
from labctl.tokens.controllers import TokenController
from labctl.vms.controllers import DiskController, OnDemandRequestController, SnapshotController, VMController
from labctl.vms.reports import ChangeController, SummaryDetailController

#: How a segment is written that stands for a thing, by the controller of that thing: a class before what it is made of.
PLACEHOLDERS = {
    RunController: "{run}",
    JobController: "{job_id}",
    MachineController: "{machine}",
    NodeController: "{host}",
    ProjectReposController: "{project}",
    RefReposController: "{ref}",
    DistroReposController: "{distro}",
    CommitReposController: "{sha1}",
    VersionController: "{version}",
    LeafController: "{flavor}",
    PackagesController: "{arch}",
    ProjectBuildsController: "{project}",
    RefBuildsController: "{ref}",
    CommitBuildsController: "{sha1}",
    DateToController: "{day}",
    ChosenRunsController: "{value}",
    VMController: "{vm}",
    DiskController: "{size}",
    SnapshotController: "{snapshot}",
    OnDemandRequestController: "{request}",
    ChangeController: "{pool}",
    SummaryDetailController: "{tag}",
    TokenController: "{token}",
    RemoteJobController: "{jid}",
    SessionController: "{session}",
    ProjectController: "{project}",
    SubscriptionController: "{project}",
}
#: A segment that can be any of these things, a day too.
SAMPLE = "2026-01-02"


@dataclass(frozen=True, order=True)
class Route:
    """A path with placeholders, the methods it answers beside HEAD and OPTIONS, its tree of rights and its dialect."""

    path: str
    methods: tuple[str, ...]
    tree: str | None
    dialect: str


def routes(settings: Settings) -> list[Route]:
    """List every route once; where paths go round (columns below the values of columns), the first round counts."""
    return sorted(set(_walk(root.tree(settings), "", Mount(), frozenset())), key=lambda route: route.path)


def _walk(node: Resource, path: str, mount: Mount, above: frozenset[type]) -> Iterator[Route]:
    mount = node.mount or mount
    if methods := tuple(method for method in node.allowed() if method not in {"HEAD", "OPTIONS"}):
        yield Route(path or "/", methods, mount.tree, mount.dialect.name)
    for segment, child in _below(node):
        if type(child) not in above:
            yield from _walk(child, f"{path}/{segment}", mount, above | {type(child)})


def _below(node: Resource) -> Iterator[tuple[str, Resource]]:
    for word, child in node.children.items():
        yield "{column}" if isinstance(child, ValuesController) and child.name != "date" else word, child
    if (item := node.item(SAMPLE)) is not None:
        day = isinstance(node, LastDayController) or (isinstance(node, ValuesController) and node.name == "date")
        kinds = [placeholder for kind, placeholder in PLACEHOLDERS.items() if isinstance(item, kind)]
        assert kinds, f"say in PLACEHOLDERS what {type(item).__name__} stands for"
        yield "{day}" if day else kinds[0], item
