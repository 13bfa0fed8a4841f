"""What pools do and did, and their configuration: ``status``, ``summary``, ``poolstat``, ``config`` and the like."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from labctl import clock
from labctl.db import reading, transaction
from labctl.errors import Forbidden, Invalid, MethodNotAllowed, NotFound
from labctl.http import body, render
from labctl.http.resource import Request, Resource
from labctl.pools import Pool
from labctl.vms import figures, overrides, queries
from labctl.vms.controllers import Tree, known_caller
from labctl.vms.overrides import Field
from labctl.vms.wire import whole

_STARTED = time.monotonic()
_MOST_TEMPLATE = 1000


class TreeController(Resource):
    """Something that one mount has one of."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        self.tree = tree
        self.mount = tree.mount

    def present(self, pools: Sequence[str] | None = None, *, providers: bool = False) -> figures.Present:
        """Read how the pools do, or some of them."""
        with reading() as session:
            counts, states = queries.counts(session, pools), queries.present(session)
            wrong = queries.open_providers(session) if providers else {}
        return figures.Present(self.tree.catalog, counts, states, wrong)


class StatusController(TreeController):
    """How the pools do."""

    def __init__(self, tree: Tree) -> None:
        """Find the pools whose VMs are not real."""
        super().__init__(tree)
        fake = {name for name, provider in tree.settings.providers.items() if provider.get("plugin") == "fake"}
        self.unreal = [pool.name for pool in tree.settings.pools if pool.provider in fake]

    def get(self, request: Request) -> Any:
        """Tell it: all of it, or the parts in ``view=`` (boot, capacity, clone, pools, queue); status always."""
        text = body.text(request, "view")
        # "?view" asks for everything, "?view=" for nothing beyond the status.
        bare = "view" in request.environ.get("QUERY_STRING", "").split("&")
        views = figures.VIEWS if text is None or bare else text.split(",")
        return figures.status_to_wire(self.present(providers=True), views, time.monotonic() - _STARTED, self.unreal)


class SummaryController(TreeController):
    """What happened on some days."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        super().__init__(tree)
        self.children = {part: SummaryPartController(tree, part) for part in ("boot", "clone", "tag")}

    def get(self, request: Request) -> Any:
        """Tell it for the days from ``from=`` to ``to=``, YYYY-MM-DD, both today if they are not there."""
        return summary(request)


class SummaryPartController(TreeController):
    """How long booting or cloning took, or which tags were set."""

    def __init__(self, tree: Tree, part: str) -> None:
        """Note which."""
        super().__init__(tree)
        self.part = part
        if part != "tag":
            self.children = {only: SummaryDetailController(part, only) for only in ("count", "duration")}

    def item(self, segment: str) -> Resource | None:
        """One tag."""
        return SummaryDetailController(self.part, segment) if self.part == "tag" else None

    def get(self, request: Request) -> Any:
        """Tell only this, as the whole summary does."""
        return summary(request, self.part)


class SummaryDetailController(Resource):
    """One detail of a part of the summary."""

    def __init__(self, part: str, only: str) -> None:
        """Note which."""
        self.part = part
        self.only = only

    def get(self, request: Request) -> Any:
        """Tell only this, as the whole summary does."""
        return summary(request, self.part, self.only)


def summary(request: Request, part: str | None = None, only: str | None = None) -> Any:
    """Tell what happened on the days that are asked for, or one part of that, or only some of the part."""
    try:
        asked = (body.text(request, "from"), body.text(request, "to"))
        first, last = figures.days_from_wire(*asked, clock.now().date())
    except Invalid as error:
        # Clients know this one as plain text.
        return render.plain(error.message, 400)
    with reading() as session:
        days = queries.days(session, first, last) if part != "tag" else []
        tags = queries.tags(session, first, last) if part in (None, "tag") else []
    return figures.summary_to_wire(figures.Past(first, last, days, tags), part, only)


class PoolstatController(TreeController):
    """How much is ready in some pools."""

    def get(self, request: Request) -> Any:
        """Tell it for the pools in ``pool=A,B``."""
        pools = body.names(request, "pool") or []
        return figures.poolstat_to_wire(self.present(pools), pools)


class TotalRunningController(TreeController):
    """How many VMs somebody has."""

    def get(self, request: Request) -> Any:
        """Count them."""
        with reading() as session:
            return {"running": queries.running(session)}


class ConfigController(TreeController):
    """The pools as they are configured and changed."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        super().__init__(tree)
        self.children = {
            "poolsize": ChangesController(tree, "size"),
            "pooltemplate": ChangesController(tree, "template"),
            "clonetarget": ChangesController(tree, "clone_target"),
            "poolreset": PoolResetController(tree),
        }

    def get(self, request: Request) -> Any:
        """List them."""
        return {"pool_configuration": figures.pools_to_wire(self.present()), "status": {"ok": True}}


class FullConfigController(TreeController):
    """The same, under the name that asks for all of the configuration."""

    def get(self, request: Request) -> Any:
        """List the pools."""
        return {"pool_configuration": figures.pools_to_wire(self.present())}


#: What a pool may be given, and how it is read: None for what cannot be.
_READ: dict[Field, Callable[[Any], Any]] = {
    "size": lambda value: whole(value, 0, 100_000),
    "template": lambda value: (
        value if isinstance(value, str) and 0 < len(value) <= _MOST_TEMPLATE and value.isprintable() else None
    ),
    "clone_target": lambda value: whole(value, 1, 1000),
}
#: How clients know the two.
_NAMES: dict[Field, str] = {"size": "pool_size", "template": "template", "clone_target": "clone_target"}


def check_admin(request: Request, tree: Tree) -> None:
    """Let pools be changed by admins only, and where the setting ``vm_config_api`` allows it."""
    if not tree.settings.vm_config_api:
        raise MethodNotAllowed(["OPTIONS"])
    if not known_caller(request).admin:
        raise Forbidden("pools are changed by admins only")


def refusal(key: str, pools: list[str], why: str) -> Any:
    """Answer that some pools cannot be changed so."""
    return render.with_status({"ok": False, key: pools, "message": f"{why}: {', '.join(pools)}"}, 400)


class ChangesController(TreeController):
    """One thing of pools that can be changed at run time."""

    def __init__(self, tree: Tree, field: Field) -> None:
        """Note which."""
        super().__init__(tree)
        self.field: Field = field

    def item(self, segment: str) -> Resource | None:
        """The same of one pool."""
        return ChangeController(self.tree, self.field, segment)

    def post(self, request: Request) -> Any:
        """Change it, as the body says by the names of pools: all of them, or none."""
        check_admin(request, self.tree)
        data = body.read_object(request, self.tree.settings.max_body)
        pools = self.tree.catalog.pools
        if not data:
            raise Invalid("must name pools", field="body")
        if unknown := [name for name in data if name not in pools]:
            return refusal("not_configured", unknown, "there is no such pool")
        values = {name: _READ[self.field](value) for name, value in data.items()}
        if wrong := [name for name, value in values.items() if value is None]:
            return refusal("bad_templates", wrong, f"this cannot be a {self.field}")
        with transaction(request.actor()) as session:
            changed = overrides.change(session, self.field, [pools[name] for name in values], values)
        return render.with_status({"ok": True}, 201 if changed else 200)


class ChangeController(TreeController):
    """One thing of one pool."""

    def __init__(self, tree: Tree, field: Field, name: str) -> None:
        """Note the pool."""
        super().__init__(tree)
        self.field: Field = field
        self.name = name

    def delete(self, request: Request) -> Any:
        """Let the configuration hold again."""
        check_admin(request, self.tree)
        pool: Pool | None = self.tree.catalog.pools.get(self.name)
        if pool is None:
            raise NotFound(f"there is no pool {self.name}")
        with transaction(request.actor()) as session:
            before, after = overrides.reset(session, self.field, pool)
        name = _NAMES[self.field]
        answer = {"ok": True, f"{name}_before_reset": before, f"{name}_before_overrides": after}
        return render.with_status(answer, 200 if before == after else 201)


class PoolResetController(TreeController):
    """Replacing all VMs of pools that nobody has."""

    def post(self, request: Request) -> Any:
        """Have them replaced, in the pools that the body names, whatever it says of them."""
        check_admin(request, self.tree)
        data = body.read_object(request, self.tree.settings.max_body)
        if not data:
            raise Invalid("must name pools", field="body")
        if unknown := [name for name in data if name not in self.tree.catalog.pools]:
            return refusal("bad_pools", unknown, "there is no such pool")
        with transaction(request.actor()) as session:
            overrides.empty(session, sorted(data))
        return render.with_status({"ok": True}, 201)
