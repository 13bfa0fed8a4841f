"""``/api/vm`` and ``/api/ondemandvm``, and the same below ``/api/v1``, ``/api/v2`` and ``/api/v3``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from labctl import clock
from labctl.db import reading, transaction
from labctl.errors import Invalid, NotFound, Unauthenticated
from labctl.http import body, render
from labctl.http.resource import Mount, Request, Resource
from labctl.settings import Settings
from labctl.tokens.service import Identity
from labctl.vms import checkout, on_demand, queries, service, wire
from labctl.vms.catalog import Catalog
from labctl.vms.service import Caller, Host, Terms
from labctl.vms.wire import Version


@dataclass(frozen=True)
class Tree:
    """What the controllers of one mount have in common."""

    settings: Settings
    mount: Mount
    catalog: Catalog
    version: Version

    def __post_init__(self) -> None:
        """Read what may be wrong now, not with the first request that needs it."""
        assert self.rules

    @cached_property
    def rules(self) -> wire.Rules:
        """What users may set."""
        settings = self.settings
        filters = {tag: re.compile(pattern) for tag, pattern in settings.vm_tag_filters.items()}
        return wire.Rules(settings.vm_tags or None, filters, settings.vm_lifetime_limit)

    def terms(self, caller: Caller) -> Terms:
        """Say for how long somebody gets VMs."""
        lifetime = self.settings.vm_lifetime
        if caller.name is not None:
            lifetime = self.settings.vm_lifetime_auth or lifetime
        return Terms(lifetime, self.settings.vm_warning)


def caller_of(request: Request) -> Caller:
    """Say who asks."""
    identity, address = request.identity, request.address()
    if isinstance(identity, Identity):
        return Caller(identity.name, identity.admin, identity.token_id, address)
    return Caller(identity.name if identity else None, address=address)


def known_caller(request: Request) -> Caller:
    """Say who asks; raises :class:`Unauthenticated` for somebody without a credential."""
    caller = caller_of(request)
    if caller.name is None:
        raise Unauthenticated
    return caller


class VMsController(Resource):
    """All pools, and VMs by their names."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        self.tree = tree
        self.mount = tree.mount

    def item(self, segment: str) -> Resource | None:
        """One VM, or names of pools."""
        return VMController(self.tree, segment)

    def get(self, request: Request) -> Any:
        """List the names of the pools."""
        return list(self.tree.catalog.pools)

    def post(self, request: Request) -> Any:
        """Give VMs out, as the body says."""
        counts = wire.counts_from_wire(body.read_object(request, self.tree.settings.max_body))
        return check_out(request, self.tree, counts)


def check_out(request: Request, tree: Tree, counts: Mapping[str, int]) -> Any:
    """Give VMs out, all that are asked for or none; what others hold for a moment is tried again."""
    if unknown := tree.catalog.unknown(counts):
        raise NotFound(wire.no_pools(unknown))
    asked, caller = tree.catalog.asked(counts), caller_of(request)

    def attempt(alone: bool) -> checkout.Given:
        with transaction(request.actor()) as session:
            return checkout.checkout(session, asked, caller, tree.terms(caller), alone=alone)

    return wire.given_to_wire(checkout.patiently(attempt), tree.catalog.domain, tree.version)


class VMController(Resource):
    """One VM; a POST there names pools instead, ``A+B+B``."""

    def __init__(self, tree: Tree, segment: str) -> None:
        """Note the name; the VM is looked for by the methods."""
        self.tree = tree
        self.segment = segment
        self.host = wire.host_from_wire(segment)

    @property
    def children(self) -> Mapping[str, Resource]:  # type: ignore[override]
        """What can be done to it."""
        return {"disk": DisksController(self.tree, self.host), "snapshot": SnapshotsController(self.tree, self.host)}

    def get(self, request: Request) -> Any:
        """Give all that is known of the VM."""
        with reading() as session:
            vm = queries.vm(session, self.host)
        return wire.vm_to_wire(vm, clock.now(), self.tree.settings.vm_lifetime, self.tree.version)

    def post(self, request: Request) -> Any:
        """Give VMs out, as the path says; whatever the body is."""
        return check_out(request, self.tree, wire.counts_from_path(self.segment))

    def put(self, request: Request) -> Any:
        """Change its lifetime, which needs a credential, and add tags: all that is sent, or nothing."""
        data = body.read_object(request, self.tree.settings.max_body)
        caller = known_caller(request) if "lifetime" in data else caller_of(request)
        change, wrong = wire.change_from_wire(data, self.tree.rules)
        if wrong:
            return render.with_status({"ok": False, "failure": wrong, "message": " ".join(wrong)}, 400)
        with transaction(request.actor()) as session:
            service.change(session, self.host, caller, change, self.tree.settings.vm_warning)
        return {"ok": True}

    def delete(self, request: Request) -> Any:
        """Give the VM back."""
        with transaction(request.actor()) as session:
            service.release(session, self.host, caller_of(request))
        return {"ok": True}


class DisksController(Resource):
    """The disks of one VM."""

    def __init__(self, tree: Tree, host: Host) -> None:
        """Note the VM."""
        self.tree = tree
        self.host = host

    def item(self, segment: str) -> Resource | None:
        """A disk of some size."""
        return DiskController(self.tree, self.host, segment)


class DiskController(Resource):
    """A disk to be added to one VM."""

    def __init__(self, tree: Tree, host: Host, size: str) -> None:
        """Note the VM and the size."""
        self.tree = tree
        self.host = host
        self.size = size

    def post(self, request: Request) -> Any:
        """Have it added."""
        caller = known_caller(request)
        gigabytes = wire.gigabytes_from_wire(self.size, self.tree.version)
        with transaction(request.actor()) as session:
            service.add_disk(session, self.host, caller, gigabytes)
        return render.with_status({"ok": True, self.host.name: {"disk": wire.disk_to_wire(gigabytes)}}, 202)


class SnapshotsController(Resource):
    """The snapshots of one VM."""

    def __init__(self, tree: Tree, host: Host) -> None:
        """Note the VM."""
        self.tree = tree
        self.host = host

    def item(self, segment: str) -> Resource | None:
        """One snapshot."""
        return SnapshotController(self.host, segment)

    def post(self, request: Request) -> Any:
        """Have one made."""
        caller = known_caller(request)
        with transaction(request.actor()) as session:
            name = service.snapshot(session, self.host, caller)
        return render.with_status({"ok": True, self.host.name: {"snapshot": name}}, 202)


class SnapshotController(Resource):
    """One snapshot of a VM."""

    def __init__(self, host: Host, name: str) -> None:
        """Note the VM and the snapshot."""
        self.host = host
        self.name = name

    def post(self, request: Request) -> Any:
        """Have the VM set back to it."""
        caller = known_caller(request)
        with transaction(request.actor()) as session:
            service.revert(session, self.host, caller, self.name)
        return render.with_status({"ok": True}, 202)


class OnDemandController(Resource):
    """Requests for VMs that are yet to be made."""

    def __init__(self, tree: Tree) -> None:
        """Take what applies to this mount."""
        self.tree = tree
        self.mount = tree.mount

    def item(self, segment: str) -> Resource | None:
        """One request, or names of pools."""
        return OnDemandRequestController(self.tree, segment)

    def post(self, request: Request) -> Any:
        """Take a request in, as the body says."""
        known_caller(request)
        try:
            data = body.read_object(request, self.tree.settings.max_body)
        except Invalid as error:
            raise error if error.field else Invalid("JSON payload could not be parsed") from error
        counts, identity = wire.request_from_wire(data)
        return order(request, self.tree, counts, identity)


def order(request: Request, tree: Tree, counts: Mapping[str, int], identity: str = "") -> Any:
    """Take a request in."""
    caller = known_caller(request)
    if unknown := tree.catalog.unknown(counts):
        answer = {"ok": False, "bad_templates": unknown, "message": wire.no_pools(unknown)}
        return render.with_status(answer, 404)
    asked = tree.catalog.asked(counts)
    if not asked:
        raise Invalid("must ask for at least one VM", field="body")
    settings = tree.settings
    limits = on_demand.Limits(settings.vm_most_on_demand, settings.vm_on_demand_minutes, settings.vm_prefix)
    with transaction(request.actor()) as session:
        identity = on_demand.ask(session, tree.catalog, asked, caller, limits, identity)
    domain = {} if tree.version.full_names or not tree.catalog.domain else {"domain": tree.catalog.domain}
    return render.with_status({"ok": True, "request_id": identity, **domain}, 201)


class OnDemandRequestController(Resource):
    """One request; a POST there names pools instead, ``A+B+B``."""

    def __init__(self, tree: Tree, segment: str) -> None:
        """Note its id."""
        self.tree = tree
        self.segment = segment

    def get(self, request: Request) -> Any:
        """Tell how the request does."""
        with reading() as session:
            found = on_demand.request(session, self.segment)
        status, answer = wire.request_to_wire(found, self.tree.catalog.domain, self.tree.version)
        return render.with_status(answer, status)

    def post(self, request: Request) -> Any:
        """Take a request in, as the path says."""
        return order(request, self.tree, wire.counts_from_path(self.segment))

    def delete(self, request: Request) -> Any:
        """Take the request back, with its VMs."""
        caller = known_caller(request)
        with transaction(request.actor()) as session:
            on_demand.take_back(session, self.segment, caller)
        return {"ok": True}
