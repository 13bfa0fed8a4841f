"""How pools and providers do: what is counted by the day, and which of them are left alone for a while, and why.

Rows are locked in this order: a VM, its pool's state, its pool's day, its provider's state.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import Base, Reader, table
from labctl.events.service import record
from labctl.vms.models import PoolDay, PoolState, ProviderState

log = logging.getLogger(__name__)

#: After so many VMs in a row that came to nothing, a pool is blocked: seconds at first, and at the most.
POOL_PATIENCE, POOL_FIRST, POOL_MOST = 3, 10.0, 600.0
#: After so many failed calls in a row, a provider is left alone but for its list: seconds at first, and at the most.
PROVIDER_PATIENCE, PROVIDER_FIRST, PROVIDER_MOST = 5, 5.0, 300.0
#: Reasons are shown to people, and providers may say anything.
LONGEST_REASON = 500

NOT_CONFIGURED = "it is not configured any more: its VMs stay as they are"

_days = table(PoolDay)
_providers = table(ProviderState)
_PROVIDERS = select(_providers)
Model = TypeVar("Model", bound=Base)


def backoff(number: int, first: float, most: float) -> float:
    """Give the seconds to wait after a number of failures (from 0) behind the first that counts."""
    return min(first * 2.0 ** min(number, 32), most)


# Days


def count_time(session: Session, pool: str, what: Literal["clone", "boot"], seconds: float) -> None:
    """Count a clone or a boot, and how long it took."""
    names = (f"{what}s", f"{what}_total", f"{what}_min", f"{what}_max")
    number, total, least, most = (_days.c[name] for name in names)
    add = upsert(_days).values(
        day=clock.now().date(), pool=pool, **dict(zip(names, (1, seconds, seconds, seconds), strict=True))
    )
    session.execute(
        add.on_conflict_do_update(
            index_elements=["day", "pool"],
            set_={
                names[0]: number + 1,
                names[1]: total + add.excluded[names[1]],
                names[2]: func.least(least, add.excluded[names[2]]),
                names[3]: func.greatest(most, add.excluded[names[3]]),
            },
        )
    )


def count(session: Session, pool: str, what: Literal["failures", "checkouts"], at: datetime) -> None:
    """Count something on the day on which it was."""
    add = upsert(_days).values(day=at.date(), pool=pool, **{what: 1})
    session.execute(add.on_conflict_do_update(index_elements=["day", "pool"], set_={what: _days.c[what] + 1}))


# Pools


def pool_succeeded(session: Session, pool: str) -> None:
    """Note that a VM has become ready: whatever was wrong with the pool is over."""
    state = _hold(session, PoolState, pool=pool)
    if state.blocked_until is not None:
        record(session, "pool.unblocked", f"pools/{pool}")
        log.info("pool_unblocked", extra={"pool": pool})
    state.failures, state.blocked_until, state.reason = 0, None, None
    state.last_boot = clock.now()
    session.flush()


def pool_failed(session: Session, pool: str, reason: str, *, hopeless: bool = False) -> None:
    """Note that a VM came to nothing; after some in a row, or at once if that is hopeless, no more are made for now."""
    now = clock.now()
    count(session, pool, "failures", now)
    state = _hold(session, PoolState, pool=pool)
    state.reason = reason[:LONGEST_REASON]
    # Those that were on their way when it was blocked say nothing new.
    if hopeless or not _is_ahead(state.blocked_until, now):
        state.failures += 1
        if hopeless or state.failures >= POOL_PATIENCE:
            seconds = POOL_MOST if hopeless else backoff(state.failures - POOL_PATIENCE, POOL_FIRST, POOL_MOST)
            if state.blocked_until is None:
                record(session, "pool.blocked", f"pools/{pool}", reason=state.reason)
            state.blocked_until = now + timedelta(seconds=seconds)
            log.warning("pool_blocked", extra={"pool": pool, "seconds": seconds, "reason": state.reason})
    session.flush()


# Providers


@dataclass(frozen=True)
class Standing:
    """How a provider does; ``open``: it is left alone, but for its list once ``open_until`` is over."""

    open: bool = False
    open_until: datetime | None = None
    listed: datetime | None = None

    def list_due(self, now: datetime, interval: float) -> bool:
        """Tell whether its list should be read now."""
        if self.open_until is not None:
            return self.open_until <= now
        return self.listed is None or self.listed + timedelta(seconds=interval) <= now


def standings(reader: Reader) -> Mapping[str, Standing]:
    """Tell how the providers do of which anything is known."""
    return {
        row.provider: Standing(row.open_until is not None, row.open_until, row.listed)
        for row in reader.execute(_PROVIDERS)
    }


def provider_answered(session: Session, provider: str, *, probe: bool = False) -> None:
    """Note that a call was answered; one that is left alone is well again only if that was the ``probe``."""
    query = select(ProviderState).where(ProviderState.provider == provider, ProviderState.failures > 0)
    state = session.scalar(query.with_for_update().execution_options(populate_existing=True))
    if state is None or (state.open_until is not None and not probe):
        return
    if state.open_until is not None:
        record(session, "provider.closed", f"providers/{provider}")
        log.info("provider_closed", extra={"provider": provider})
    state.failures, state.open_until, state.reason = 0, None, None
    session.flush()


def provider_failed(
    session: Session, provider: str, reason: str, *, probe: bool = False, now_open: bool = False
) -> None:
    """Note that a call has failed; after some in a row the provider is left alone.

    ``probe``: it was the call that should tell whether that is over. ``now_open``: it is not to be asked any more.
    """
    now = clock.now()
    state = _hold(session, ProviderState, provider=provider)
    # Those that were on their way when it was opened say nothing new.
    if probe or not _is_ahead(state.open_until, now):
        state.failures = max(state.failures + 1, PROVIDER_PATIENCE if now_open else 0)
        state.reason = reason[:LONGEST_REASON]
        if state.failures >= PROVIDER_PATIENCE:
            seconds = backoff(state.failures - PROVIDER_PATIENCE, PROVIDER_FIRST, PROVIDER_MOST)
            if state.open_until is None:
                record(session, "provider.open", f"providers/{provider}", reason=state.reason)
            state.open_until = now + timedelta(seconds=seconds)
            log.warning("provider_open", extra={"provider": provider, "seconds": seconds, "reason": state.reason})
    session.flush()


def provider_is_gone(session: Session, provider: str) -> None:
    """Note that there are VMs of a provider that the settings do not have."""
    state = _hold(session, ProviderState, provider=provider)
    state.failures, state.open_until, state.reason = 0, None, NOT_CONFIGURED
    session.flush()


def _hold(session: Session, model: type[Model], **key: Any) -> Any:
    """Lock a row, which is added if it is not there yet."""
    session.execute(upsert(model).values(**key).on_conflict_do_nothing())
    return session.scalars(
        select(model).filter_by(**key).with_for_update().execution_options(populate_existing=True)
    ).one()


def _is_ahead(time: datetime | None, now: datetime) -> bool:
    return time is not None and time > now
