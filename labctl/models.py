"""Every domain's tables, imported so that the metadata is whole."""

from labctl.db import Base
from labctl.events import models as events
from labctl.machines import models as machines
from labctl.maintenance import models as maintenance
from labctl.nodes import models as nodes
from labctl.queues import models as queues
from labctl.remote import models as remote
from labctl.repos import models as repos
from labctl.runs import models as runs
from labctl.tokens import models as tokens
from labctl.vms import models as vms

metadata = Base.metadata

__all__ = [
    "events",
    "machines",
    "maintenance",
    "metadata",
    "nodes",
    "queues",
    "remote",
    "repos",
    "runs",
    "tokens",
    "vms",
]
