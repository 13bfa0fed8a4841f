"""How pools do and did, in numbers, as vmpooler's clients know them."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from operator import attrgetter
from typing import Any

from labctl import times
from labctl.errors import Invalid
from labctl.pools import Pool
from labctl.vms.catalog import Catalog
from labctl.vms.overrides import Field, value
from labctl.vms.queries import Counts
from labctl.vms.states import VMState

#: The longest time one summary may be about.
MOST_DAYS = 3660
FINE = "Battle station fully armed and operational."
VIEWS = ("boot", "capacity", "clone", "pools", "queue")

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Present:
    """How the pools do: VMs by pool and state, what is known of each pool, and what is wrong with which provider."""

    catalog: Catalog
    counts: Counts
    states: Mapping[str, Any]
    open_providers: Mapping[str, str]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Give the size that each pool should have now."""
        return {name: value(pool, self.states.get(name), "size") for name, pool in self.catalog.pools.items()}

    def number(self, pool: str, state: VMState) -> int:
        """Count VMs of a pool."""
        return self.counts.get((pool, state), 0)

    def being_made(self, pool: str) -> int:
        """Count VMs of a pool that are on their way."""
        return self.number(pool, VMState.REQUESTED) + self.number(pool, VMState.PENDING)

    def blocked(self) -> dict[str, str]:
        """Say why no VMs are made in which pools, but for a try now and then."""
        return {
            name: state.reason or "its VMs could not be made"
            for name, state in self.states.items()
            if name in self.catalog.pools and state.blocked_until is not None
        }


# Status


def status_to_wire(present: Present, views: Iterable[str], uptime: float, unreal: Sequence[str] = ()) -> dict[str, Any]:
    """Shape the status, with the parts that are asked for; ``unreal`` are pools whose VMs exist in name only."""
    parts: dict[str, Callable[[], Any]] = {
        "boot": lambda: _today(present, "boot"),
        "capacity": lambda: _capacity(present),
        "clone": lambda: _today(present, "clone"),
        "pools": lambda: {name: _pool(present, pool) for name, pool in present.catalog.pools.items()},
        "queue": lambda: _queue(present),
    }
    shown: dict[str, Any] = {name: parts[name]() for name in VIEWS if name in views}
    return {**shown, "status": _wellness(present, uptime, unreal)}


def _wellness(present: Present, uptime: float, unreal: Sequence[str]) -> dict[str, Any]:
    empty = [name for name, size in present.sizes.items() if size and not present.number(name, VMState.READY)]
    status: dict[str, Any] = {"ok": not empty, "message": f"Found {len(empty)} empty pools." if empty else FINE}
    # What is not the protocol's own: why pools are empty or will be, and which of them are only for show.
    more = {
        "empty": empty,
        "blocked": present.blocked(),
        "providers": dict(present.open_providers),
        "fake": list(unreal),
    }
    return {**status, **{name: found for name, found in more.items() if found}, "uptime": round(uptime, 1)}


def _capacity(present: Present) -> dict[str, Any]:
    ready = sum(present.number(name, VMState.READY) for name in present.catalog.pools)
    total = sum(present.sizes.values())
    return {"current": ready, "total": total, "percent": round(100 * ready / total, 1) if total else 0.0}


def _queue(present: Present) -> dict[str, int]:
    states: Counter[str] = Counter()
    for (_, state), number in present.counts.items():
        states[state] += number
    return {
        "pending": states[VMState.REQUESTED] + states[VMState.PENDING],
        "cloning": states[VMState.REQUESTED],
        "booting": states[VMState.PENDING],
        "ready": states[VMState.READY],
        "running": states[VMState.RUNNING],
        "completed": states[VMState.COMPLETED],
        "total": states.total(),
    }


def _pool(present: Present, pool: Pool) -> dict[str, Any]:
    state = present.states.get(pool.name)
    last = state.last_boot if state is not None else None
    shown = {
        "ready": present.number(pool.name, VMState.READY),
        "running": present.number(pool.name, VMState.RUNNING),
        "pending": present.being_made(pool.name),
        "max": present.sizes[pool.name],
        "lastBoot": times.to_wire_with_offset(last) if last else "",
    }
    return {**shown, "alias": pool.alias} if pool.alias else shown


def poolstat_to_wire(present: Present, pools: Iterable[str]) -> dict[str, Any]:
    """Shape how much is ready in some pools; those that do not exist are left out."""
    shown: dict[str, Any] = {}
    for pool in (present.catalog.pools[name] for name in pools if name in present.catalog.pools):
        shown[pool.name] = {"max": present.sizes[pool.name], "ready": present.number(pool.name, VMState.READY)}
        if pool.alias:
            shown[pool.name]["alias"] = pool.alias
    return {"pools": shown}


def pools_to_wire(present: Present) -> list[dict[str, Any]]:
    """Shape the pools as they are configured and changed."""
    blocked = present.blocked()
    changeable: tuple[Field, ...] = ("size", "template", "clone_target")
    shown = []
    for name, pool in present.catalog.pools.items():
        now: dict[str, Any] = {field: value(pool, present.states.get(name), field) for field in changeable}
        fixed = {field: getattr(pool, field) for field in ("provider", "timeout", "ready_ttl")}
        entry: dict[str, Any] = {"name": name, "alias": pool.alias, **now, **fixed}
        entry |= {"domain": present.catalog.domain_of(name), "template_ready": name not in blocked}
        shown.append({**entry, "blocked": blocked[name]} if name in blocked else entry)
    return shown


# What tasks took


@dataclass(frozen=True)
class Tally:
    """How often something was done, and how many seconds it took."""

    count: int = 0
    total: float = 0.0
    least: float | None = None
    most: float | None = None

    @classmethod
    def of(cls, tallies: Iterable["Tally"]) -> "Tally":
        """Put some together."""
        done = list(tallies)
        return cls(
            sum([each.count for each in done]),
            sum([each.total for each in done]),
            min([each.least for each in done if each.least is not None], default=None),
            max([each.most for each in done if each.most is not None], default=None),
        )

    def duration(self) -> dict[str, float]:
        """Shape the time it took."""
        return {
            "average": round(self.total / self.count, 1) if self.count else 0,
            "min": round(self.least or 0, 2),
            "max": round(self.most or 0, 2),
            "total": round(self.total, 2),
        }


def _tallies(rows: Iterable[Any], task: str) -> list[Tally]:
    figures = attrgetter(f"{task}s", *(f"{task}_{name}" for name in ("total", "min", "max")))
    return [Tally(count or 0, total or 0.0, least, most) for count, total, least, most in map(figures, rows)]


def _today(present: Present, task: str) -> dict[str, Any]:
    done = Tally.of(_tallies(present.states.values(), task))
    return {"duration": done.duration(), "count": {"total": done.count}}


# Summary


def days_from_wire(first: str | None, last: str | None, today: date) -> tuple[date, date]:
    """Read the days a summary is about; raises :class:`Invalid` in the words that clients know."""
    begin, end = (today if text is None else _day(text) for text in (first, last))
    if end < begin:
        raise Invalid("Date range is invalid, 'to' cannot come before 'from'.")
    if begin > today:
        raise Invalid("Date range is invalid, 'from' must be in the past.")
    if (end - begin).days >= MOST_DAYS:
        raise Invalid(f"Date range is invalid, it cannot have more than {MOST_DAYS} days.")
    return begin, end


def _day(text: str) -> date:
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise Invalid(f"Invalid date format '{text[:100]}', must match YYYY-MM-DD.")


@dataclass(frozen=True)
class Past:
    """What happened on some days: rows of labctl.vms.queries.days and tags."""

    first: date
    last: date
    pools: Sequence[Any]
    tags: Sequence[Any]

    def days(self) -> list[date]:
        """List the days."""
        return [self.first + timedelta(days=number) for number in range((self.last - self.first).days + 1)]


def summary_to_wire(past: Past, part: str | None = None, only: str | None = None) -> dict[str, Any]:
    """Shape what happened, day by day and altogether: all of it, or one part (boot, clone, tag), or only some of that.

    Of a task there are ``count`` and ``duration``, of tags there is each tag.
    """
    parts = ("boot", "clone", "tag") if part is None else (part,)
    daily: dict[date, dict[str, Any]] = {day: {"date": day.isoformat()} for day in past.days()}
    answer: dict[str, Any] = {}
    for name in parts:
        overall, of_day = _tags(past, only) if name == "tag" else _task(past, name, only)
        answer[name] = overall
        for day, shown in daily.items():
            shown[name] = of_day[day]
    return {**answer, "daily": list(daily.values())}


def _task(past: Past, task: str, only: str | None) -> tuple[dict[str, Any], dict[date, dict[str, Any]]]:
    by_day: dict[date, dict[str, Tally]] = {day: {} for day in past.days()}
    of_pool: dict[str, list[Tally]] = {}
    for row, done in zip(past.pools, _tallies(past.pools, task), strict=True):
        if done.count:
            by_day[row.day][row.pool] = done
            of_pool.setdefault(row.pool, []).append(done)
    by_pool = {pool: Tally.of(tallies) for pool, tallies in of_pool.items()}
    of_day = {day: _of_task(pools, None, only) for day, pools in by_day.items()}
    counts = [sum(done.count for done in pools.values()) for pools in by_day.values()]
    return _of_task(by_pool, counts, only), of_day


def _of_task(pools: Mapping[str, Tally], counts: Sequence[int] | None, only: str | None) -> dict[str, Any]:
    """Shape a task; ``counts`` are those of the days, if it is about several."""
    done = Tally.of(pools.values())
    duration: dict[str, Any] = done.duration()
    count: dict[str, Any] = {"total": done.count}
    if counts is not None:
        average = round(sum(counts) / len(counts), 1)
        count = {"average": average, "min": min(counts), "max": max(counts), **count}
    if pools:
        duration["pool"] = {name: each.duration() for name, each in pools.items()}
        count["pool"] = {name: {"total": each.count} for name, each in pools.items()}
    shown = {"duration": duration, "count": count}
    return shown if only is None else {only: shown[only]}


def _tags(past: Past, only: str | None) -> tuple[dict[str, Any], dict[date, dict[str, Any]]]:
    overall: dict[str, Any] = {}
    of_day: dict[date, dict[str, Any]] = {day: {} for day in past.days()}
    for row in past.tags:
        if only in (None, row.tag):
            _count(overall, row)
            _count(of_day[row.day], row)
    return overall, of_day


def _count(tags: dict[str, Any], row: Any) -> None:
    values = tags.setdefault(row.tag, {"total": 0})
    if row.value != "total":
        values[row.value] = values.get(row.value, 0) + row.number
    values["total"] += row.number
