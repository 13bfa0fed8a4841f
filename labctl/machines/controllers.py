"""``/nodes`` and ``/api/machines``."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from labctl import clock
from labctl.db import reading, transaction
from labctl.errors import Invalid, NotFound
from labctl.http import body, paging, render
from labctl.http.resource import Mount, Request, Resource
from labctl.machines import queries, service, wire
from labctl.runs import documents
from labctl.runs import queries as runs
from labctl.runs.states import JobState
from labctl.settings import Settings

_MOST = 2**31 - 1
_MOST_DAYS = 36_500


class MachinesController(Resource):
    """All machines."""

    def __init__(self, settings: Settings, mount: Mount) -> None:
        """Take what applies to this mount."""
        self.settings = settings
        self.mount = mount
        self.children = {
            "lock_many": LockManyController(settings),
            "unlock_many": UnlockManyController(settings),
            "machine_types": MachineTypesController(),
            "job_stats": JobStatsController(),
        }

    def item(self, segment: str) -> Resource | None:
        """One machine."""
        return MachineController(self.settings, segment)

    def get(self, request: Request) -> Any:
        """List the machines by name: all of them, or those that the query chooses; ``count=`` ends the list early."""
        chosen: dict[str, Any] = {name: body.flag(request, name) for name in ("locked", "up", "is_vm")}
        chosen |= {name: body.text(request, name) or None for name in ("os_type", "os_version", "arch", "locked_by")}
        chosen["machine_type"] = wire.types_from_wire(body.text(request, "machine_type"))
        count = body.integer(request, "count", None, least=1, most=_MOST)
        wanted = {name: value for name, value in chosen.items() if value is not None}
        with reading() as session:
            machines = queries.machines(session, wanted, count)
        return render.as_list(machines)

    def post(self, request: Request) -> Any:
        """Add a machine."""
        data = body.read_object(request, self.settings.max_body)
        if data.get("name") is None:
            raise Invalid("could not find required key: 'name'")
        given = body.parse(wire.NewMachineInput, data)
        with transaction(request.actor()) as session:
            service.add(session, given.name, given.sent())
        return {}


class MachineController(Resource):
    """One machine."""

    def __init__(self, settings: Settings, name: str) -> None:
        """Note the name; the machine is looked for by the methods."""
        self.settings = settings
        self.name = name

    @property
    def children(self) -> Mapping[str, Resource]:  # type: ignore[override]
        """Its lock and its jobs."""
        return {
            "lock": LockController(self.settings, self.name),
            "jobs": MachineJobsController(self.settings, self.name),
            "job_stats": MachineJobStatsController(self.name),
        }

    def get(self, request: Request) -> Any:
        """Give all that is known of the machine."""
        with reading() as session:
            machine = queries.machine(session, self.name)
        if machine is None:
            raise NotFound("node not found")
        return render.Text(machine)

    def put(self, request: Request) -> Any:
        """Change what is sent, and nothing else; the name never."""
        given = body.parse(wire.MachineInput, body.read_object(request, self.settings.max_body))
        with transaction(request.actor()) as session:
            service.change(session, self.name, given.sent())
        return {}

    def delete(self, request: Request) -> Any:
        """Remove the machine, unless it is locked."""
        with transaction(request.actor()) as session:
            service.remove(session, self.name)
        return {}


class LockController(Resource):
    """The lock of one machine."""

    def __init__(self, settings: Settings, name: str) -> None:
        """Note the name."""
        self.settings = settings
        self.name = name

    def put(self, request: Request) -> Any:
        """Lock or unlock the machine."""
        wanted = body.parse(wire.LockInput, body.read_object(request, self.settings.max_body))
        with transaction(request.actor()) as session:
            machine = service.change_lock(session, self.name, wanted.sent())
        return wire.lock_to_wire(machine)

    post = put


class LockManyController(Resource):
    """Locking any machines of a type."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits."""
        self.settings = settings

    def post(self, request: Request) -> Any:
        """Lock as many machines as are wanted, or none."""
        given = body.parse(wire.LockManyInput, body.read_object(request, self.settings.max_body))
        with transaction(request.actor()) as session:
            machines = service.lock_many(session, wire.wanted_from_wire(given))
        return [wire.node_to_wire(machine) for machine in machines]


class UnlockManyController(Resource):
    """Unlocking machines by name."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits."""
        self.settings = settings

    def post(self, request: Request) -> Any:
        """Unlock all of the machines, or none."""
        given = body.parse(wire.UnlockManyInput, body.read_object(request, self.settings.max_body))
        with transaction(request.actor()) as session:
            machines = service.unlock_many(session, given.names, given.locked_by)
        return [wire.lock_to_wire(machine) for machine in machines]


class MachineTypesController(Resource):
    """The types that machines have."""

    def get(self, request: Request) -> Any:
        """List them, sorted."""
        with reading() as session:
            return queries.machine_types(session)


class JobStatsController(Resource):
    """How busy the machines were."""

    def get(self, request: Request) -> Any:
        """Count the jobs of the last ``since_days=`` days by machine and status, the least busy machine first."""
        days = body.integer(request, "since_days", 14, least=1, most=_MOST_DAYS)
        assert days is not None
        machine_types = wire.types_from_wire(body.text(request, "machine_type"))
        with reading() as session:
            counts = runs.job_counts_by_machine(session, clock.now() - timedelta(days=days), machine_types)
        return wire.job_stats_to_wire(counts)


class MachineJobsController(Resource):
    """The jobs of one machine."""

    def __init__(self, settings: Settings, name: str) -> None:
        """Note the name."""
        self.settings = settings
        self.name = name
        self.logs = documents.LogURL(settings.job_log_url)

    def get(self, request: Request) -> Any:
        """List the jobs that ran on the machine, newest first: those of a run (``name=``), those with a ``status=``."""
        page = paging.page_of(request, self.settings)
        run_name, status = body.text(request, "name"), body.choice(request, "status", list(JobState))
        with reading() as session:
            listed = runs.jobs_of_machine(
                session,
                service.find(session, self.name),
                self.logs,
                run_name=run_name,
                status=status,
                page=page,
            )
        following = paging.next_url(request, page, len(listed.documents), listed.last)
        return render.with_next(render.as_list(listed.documents), following)


class MachineJobStatsController(Resource):
    """How the jobs of one machine went."""

    def __init__(self, name: str) -> None:
        """Note the name."""
        self.name = name

    def get(self, request: Request) -> Any:
        """Count its jobs by status; all statuses are there."""
        with reading() as session:
            return runs.job_counts_of_machine(session, service.find(session, self.name))
