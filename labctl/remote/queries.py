"""Reading jobs, their output as it comes, and which hosts there are."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Select,
    Text,
    any_,
    bindparam,
    case,
    column,
    func,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from labctl.db import PREPARED, Reader, table
from labctl.errors import NotFound, Unavailable
from labctl.paging import Page
from labctl.remote import patterns
from labctl.remote.models import RemoteHost, RemoteInventory, RemoteJob, RemoteJobHost, RemoteOutput
from labctl.remote.states import LIFE, JobState

#: How much output is read at once: bytes (and a piece beyond them), and pieces.
MOST_BYTES = 8 * 1024 * 1024
MOST_PIECES = 20_000

# Built once: putting a statement together costs as much as sending it.
_jobs, _job_hosts, _outputs = table(RemoteJob), table(RemoteJobHost), table(RemoteOutput)
_hosts, _inventory = table(RemoteHost), table(RemoteInventory)

# Hosts

_KNOWN = (
    select(_inventory.c.error, _hosts.c.name)
    .outerjoin_from(_inventory, _hosts, _hosts.c.name == any_(bindparam("names", type_=ARRAY(Text))))
    .where(_inventory.c.id == literal_column("1"))
)
_ALL = (
    select(_inventory.c.error, _hosts.c.name, _hosts.c.groups)
    .outerjoin_from(_inventory, _hosts, true())
    .where(_inventory.c.id == literal_column("1"))
)


def known_hosts(session: Reader, names: Iterable[str]) -> set[str]:
    """Give those of the names that are hosts; raises :class:`Unavailable` before the inventory was read once."""
    return {row.name for row in _told(session, _KNOWN, {"names": list(names)})}


def hosts(session: Reader) -> dict[str, list[str]]:
    """Give all hosts with their groups, by name; raises as :func:`known_hosts`, and when it could never be read."""
    rows = _told(session, _ALL, {})
    if not rows.error_alone:
        return {row.name: row.groups for row in sorted(rows, key=lambda row: str(row.name))}
    raise Unavailable(f"the inventory cannot be read: {rows.error_alone}")


class _Told(list[Any]):
    """Rows about hosts, and what is wrong if there are none for that reason."""

    error_alone: str | None = None


def _told(session: Reader, statement: Select[Any], parameters: Mapping[str, Any]) -> _Told:
    rows = session.execute(statement, parameters).all()
    if not rows:
        raise Unavailable("the inventory has not been read yet; is a worker running?")
    told = _Told(row for row in rows if row.name is not None)
    if not told:
        told.error_alone = rows[0].error
    return told


def matching(session: Reader, targets: Sequence[str]) -> list[str]:
    """Give the hosts that names and patterns mean, as :func:`labctl.remote.patterns.choose`.

    Raises :class:`NotFound` with those that mean none.
    """
    wanted = list(dict.fromkeys(targets))
    if known_hosts(session, wanted) == set(wanted):
        return wanted
    chosen, missing = patterns.choose(hosts(session), wanted)
    if missing:
        raise NotFound(f"no hosts match that target: {shortened(missing)}")
    return chosen


def shortened(words: Sequence[str], most: int = 20, separator: str = ", ") -> str:
    """Write a list that may be long."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return separator.join(words[:most]) + more


# Jobs

_COLUMNS = (
    *("id", "jid", "operation", "state", "error", "arguments", "asked_by", "address", "timeout"),
    *("created", "started", "finished", "cancelled", "cancelled_by", "last_seq"),
)


@dataclass(frozen=True)
class JobFilter:
    """Which jobs: in one of some states, of one operation, on one host."""

    states: tuple[JobState, ...] = ()
    operation: str | None = None
    host: str | None = None


def _with_hosts(page: Any) -> Select[Any]:
    """Add its hosts and their states, in the order of the request, to each job of a part of the table."""
    of_job = _job_hosts.c.job_id == page.c.id
    position = _job_hosts.c.position
    collected = (
        select(
            func.array_agg(aggregate_order_by(_job_hosts.c.host, position), type_=ARRAY(Text)).label("hosts"),
            func.array_agg(aggregate_order_by(_job_hosts.c.state, position), type_=ARRAY(Text)).label("host_states"),
        )
        .where(of_job)
        .lateral("collected")
    )
    return select(page, collected).select_from(page.join(collected, true())).order_by(page.c.id.desc())


_ONE = _with_hosts(
    select(*(_jobs.c[name] for name in _COLUMNS)).where(_jobs.c.jid == bindparam("jid", type_=Text)).subquery("page")
).execution_options(**PREPARED)


def job(session: Reader, jid: str) -> Any:
    """Give a job with its hosts; raises :class:`NotFound`."""
    found = session.execute(_ONE, {"jid": jid}).first()
    if found is None:
        raise no_such_job(jid)
    return found


def no_such_job(jid: str) -> NotFound:
    """Make the error that a job does not exist, in its documented words."""
    return NotFound(f"no such jid {jid}")


def jobs(session: Reader, chosen: JobFilter, page: Page, *, detail: bool = False) -> Sequence[Any]:
    """List jobs, the newest first; with detail as :func:`job`, else their ``jid``, ``created`` and ``id``."""
    parameters: dict[str, Any] = {f"state_{place}": state for place, state in enumerate(chosen.states)}
    if chosen.operation is not None:
        parameters["operation"] = chosen.operation
    if chosen.host is not None:
        parameters["host"] = chosen.host
    if page.after is not None:
        parameters["after"] = page.after[1]
    statement = _listed(tuple(parameters), detail)
    limits = {"count": page.count, "offset": page.offset, "most": page.offset + page.count}
    return session.execute(statement, parameters | limits).all()


@lru_cache(maxsize=64)
def _listed(conditions: tuple[str, ...], detail: bool) -> Select[Any]:
    query = select(*(_jobs.c[name] for name in (_COLUMNS if detail else ("jid", "created", "id"))))
    if "operation" in conditions:
        query = query.where(_jobs.c.operation == bindparam("operation", type_=Text))
    if "host" in conditions:
        query = query.join(_job_hosts, _job_hosts.c.job_id == _jobs.c.id)
        query = query.where(_job_hosts.c.host == bindparam("host", type_=Text))
    if "after" in conditions:
        query = query.where(_jobs.c.id < bindparam("after", type_=BigInteger))
    query = query.order_by(_jobs.c.id.desc()).limit(bindparam("most", type_=Integer))
    states = [name for name in conditions if name.startswith("state_")]
    # The newest of each state are the first in an index, those of any of several states are not.
    parts = [query.where(_jobs.c.state == bindparam(name, type_=Text)) for name in states] or [query]
    whole = union_all(*parts).subquery("whole") if len(parts) > 1 else parts[0].subquery("whole")
    page = select(whole).order_by(whole.c.id.desc())
    page = page.limit(bindparam("count", type_=Integer)).offset(bindparam("offset", type_=Integer))
    return _with_hosts(page.subquery("page")) if detail else page


# Output


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a job is: the number of its last output, and its state."""

    last_seq: int
    state: JobState
    error: str = ""

    @property
    def ended(self) -> bool:
        """Tell whether nothing more will come."""
        return LIFE.final(self.state)


_STANDINGS = (
    select(_jobs.c.id, _jobs.c.last_seq, _jobs.c.state, case((_jobs.c.finished.is_not(None), _jobs.c.error)))
    .where(_jobs.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger))))
    .execution_options(**PREPARED)
)


def standings(session: Reader, ids: Collection[int]) -> dict[int, Standing]:
    """Tell how far some jobs are; those that have been deleted are missing."""
    rows = session.execute(_STANDINGS, {"ids": list(ids)})
    return {row[0]: Standing(row[1], JobState(row[2]), row[3] or "") for row in rows}


_size = func.octet_length(_outputs.c.chunk)
_asked = (
    func.unnest(
        bindparam("ids", type_=ARRAY(BigInteger)),
        bindparam("afters", type_=ARRAY(Integer)),
        bindparam("lasts", type_=ARRAY(Integer)),
    )
    .table_valued(column("id", BigInteger), column("after", Integer), column("last", Integer), name="asked")
    .render_derived()
)
# The bytes before each piece: text that is stored elsewhere is not fetched for that.
_counted = (
    select(
        _outputs.c.seq,
        _outputs.c.host,
        _outputs.c.chunk,
        (func.sum(_size).over(order_by=_outputs.c.seq) - _size).label("before"),
    )
    .where(
        _outputs.c.job_id == _asked.c.id,
        _outputs.c.seq > _asked.c.after,
        _outputs.c.seq <= _asked.c.last,
        # Numbers have no gaps: this is a limit that the index knows.
        _outputs.c.seq <= _asked.c.after + bindparam("pieces", type_=Integer),
    )
    .lateral("counted")
)
_OUTPUTS = (
    select(_asked.c.id, _counted.c.seq, _counted.c.host, _counted.c.chunk)
    .select_from(_asked.join(_counted, true()))
    .where(_counted.c.before < bindparam("bytes", type_=BigInteger))
    .order_by(_asked.c.id, _counted.c.seq)
    .execution_options(**PREPARED)
)


def outputs(
    session: Reader,
    spans: Mapping[int, tuple[int, int]],
    *,
    pieces: int = MOST_PIECES,
    most_bytes: int = MOST_BYTES,
) -> dict[int, list[Any]]:
    """Read the output of jobs after one number up to another, in order, as far as the limits for each job allow.

    Gives rows of ``seq``, ``host`` and ``chunk``. While more is left, there is at least one.
    """
    found: dict[int, list[Any]] = {job: [] for job in spans}
    asked = {
        "ids": list(spans),
        "afters": [after for after, _ in spans.values()],
        "lasts": [last for _, last in spans.values()],
    }
    if spans:
        for row in session.execute(_OUTPUTS, {**asked, "pieces": pieces, "bytes": most_bytes}):
            found[row.id].append(row)
    return found
