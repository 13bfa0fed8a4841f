"""An engine with a fake provider, driven step by step under a stopped clock."""

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from labctl.events.models import Event
from labctl.pools import Pool
from labctl.vms.catalog import Catalog
from labctl.vms.config import Handling, Served
from labctl.vms.engine import Engine
from labctl.vms.models import VM, PoolState, ProviderState
from labctl.vms.providers.fake import FakeProvider
from labctl.vms.states import VMState
from labctl.vms.upkeep import Rules

#: Longest time a call of the fake may take that does not hang, in seconds.
PATIENCE = 10


class Lab:
    """Some pools, their engine, and the world of the fake provider."""

    def __init__(self, session: Session, directory: Path, clock: Any, pools: list[Pool], **options: Any) -> None:
        self.session = session
        self.clock = clock
        self.directory = directory
        self.options: dict[str, Any] = {"directory": str(directory), "boot_seconds": (1, 1)}
        self.pools = pools
        self.handling: dict[str, Any] = {"plugin": "fake", "deadline": PATIENCE, "list_interval": 30}
        self.rules: dict[str, Any] = {}
        self.change(**options)

    def change(self, *, handling: Mapping[str, Any] = {}, rules: Mapping[str, Any] = {}, **options: Any) -> None:
        """Start the engine anew, with another configuration."""
        self.handling |= handling
        self.rules |= rules
        self.options |= options
        self.engine = self.another()

    def another(self) -> Engine:
        """Make an engine, as another process would."""
        self.provider = FakeProvider("fake", self.options)
        handling = Handling(**self.handling)
        rules = Rules(Catalog(self.pools), {"fake": handling.limit}, **self.rules)
        return Engine(rules, {"fake": Served(self.provider, handling)}, poll=0)

    def settle(self, **advance: float) -> None:
        """Let the engine do what there is to do now, after moving the clock."""
        self.session.flush()
        self.clock.advance(**advance)
        self.engine.tick()
        while self.engine.busy:
            self.engine.tick(PATIENCE)
        self.session.expire_all()

    def live(self, seconds: float) -> None:
        """Let time pass, a second at a time."""
        for _ in range(round(seconds)):
            self.settle(seconds=1)

    def filled(self) -> "Lab":
        """Go on until the pools are full, or time it is."""
        self.settle()
        self.settle(seconds=1)
        self.settle(seconds=1)
        return self

    def faults(self, **options: Any) -> None:
        """Tell the running fake what to do wrong from now on."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "faults.json").write_bytes(orjson.dumps(options))

    @property
    def world(self) -> set[str]:
        """The VMs that there are, whatever labctl knows."""
        return {file.stem for file in self.directory.glob("vms/*.json")}

    def vms(self, *states: VMState, pool: str | None = None) -> list[VM]:
        query = select(VM).order_by(VM.id)
        if states:
            query = query.where(VM.state.in_(states))
        if pool is not None:
            query = query.where(VM.pool == pool)
        return list(self.session.scalars(query))

    def ready(self, pool: str | None = None) -> list[VM]:
        return self.vms(VMState.READY, pool=pool)

    def counts(self, pool: str | None = None) -> dict[str, int]:
        """Count VMs by state, less those that are destroyed."""
        return dict(Counter(str(vm.state) for vm in self.vms(pool=pool) if vm.state != VMState.DESTROYED))

    def take(self, vm: VM, hours: int = 12) -> VM:
        """Check a VM out."""
        vm.state = VMState.RUNNING
        vm.checkout, vm.lifetime, vm.expires = self.clock(), hours, self.clock() + timedelta(hours=hours)
        vm.due = vm.expires
        vm.owner = "ada"
        self.session.flush()
        return vm

    def pool(self, name: str) -> PoolState:
        return self.session.get_one(PoolState, name)

    def standing(self) -> ProviderState:
        return self.session.get_one(ProviderState, "fake")

    def events(self, *kinds: str) -> list[Event]:
        return list(self.session.scalars(select(Event).where(Event.kind.in_(kinds)).order_by(Event.seq)))
