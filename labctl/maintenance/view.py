"""What a workflow sees of a session: read in a handful of statements, however many hosts there are."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Text, bindparam, select
from sqlalchemy.orm import Session

from labctl import clock
from labctl.db import table
from labctl.maintenance import acting, downloads, known
from labctl.maintenance.models import MaintenanceHost, MaintenanceMove, MaintenanceReply
from labctl.maintenance.states import ActionType, HostState, InstanceAction, MoveState
from labctl.maintenance.workflow import Host, Instance, Progress, Reply, View
from labctl.maintenance.workflows import hints
from labctl.vms import cordon

_hosts = table(MaintenanceHost)
_replies = table(MaintenanceReply)
_moves = table(MaintenanceMove)
_sid = bindparam("this_sid", type_=Text)
_HOSTS = select(_hosts).where(_hosts.c.session_id == _sid).order_by(_hosts.c.position)
_REPLIES = select(_replies).where(_replies.c.session_id == _sid)
# What was moved and is there again has to be moved again.
_MOVES = select(_moves).where(_moves.c.session_id == _sid, _moves.c.state != MoveState.DONE)
_ACTIONS = frozenset(action.value for action in InstanceAction)
#: Nobody is affected by what happens to the others.
_USED = (HostState.WAITING, HostState.DRAINING)


def build(
    session: Session, row: Any, reply_seconds: Mapping[str, float], can: known.Capabilities = known.NOTHING
) -> View:
    """Give the view of a session whose ``row`` the caller holds."""
    sid = {"this_sid": row.id}
    rows = session.execute(_HOSTS, sid).all()
    fetched = downloads.progress(session, row.id)
    done = acting.progress(session, row.id)
    unchecked = row.hints.get("gate") == hints.NONE and not any(
        action["type"] == ActionType.CHECK for action in row.actions
    )

    def progress(kind: ActionType, host: str = "") -> tuple[Progress, str]:
        if kind == ActionType.CHECK and unchecked:
            return Progress.DONE, ""
        return done.get((kind, host), (Progress.DONE, ""))

    pre, post = progress(ActionType.PRE), progress(ActionType.POST)
    instances = _instances(session, sid, [host.host for host in rows if host.state in _USED], can)
    draining = [host.host for host in rows if host.state == HostState.DRAINING]
    unsettled = cordon.unsettled(session, draining) if draining else frozenset()
    return View(
        state=row.state,
        entered=row.entered,
        now=clock.now(),
        maintenance_at=row.maintenance_at,
        metadata=row.hints,
        hosts=tuple(_host(host, instances, progress, host.host not in unsettled) for host in rows),
        replies=_read_replies(session, row.id),
        reply_seconds=reply_seconds,
        downloads=fetched[0],
        pre=pre[0],
        post=post[0],
        reason=next((why for how, why in (fetched, pre, post) if how == Progress.FAILED), ""),
    )


def _host(
    row: Any, instances: Mapping[str, tuple[tuple[Instance, ...], bool, bool]], progress: Any, settled: bool
) -> Host:
    used, replaceable, remade = instances.get(row.host, ((), True, False))
    actions, check = progress(ActionType.HOST, row.host), progress(ActionType.CHECK, row.host)
    return Host(
        name=row.host,
        state=HostState(row.state),
        instances=used,
        replaceable=replaceable,
        remade=remade,
        settled=settled,
        actions=actions[0],
        check=check[0],
        reason=row.reason or next((why for how, why in (actions, check) if how == Progress.FAILED), ""),
        since=row.started if row.state not in (HostState.WAITING, HostState.DONE, HostState.SKIPPED) else None,
    )


def _instances(
    session: Session, sid: Mapping[str, str], hosts: Collection[str], can: known.Capabilities
) -> dict[str, tuple[tuple[Instance, ...], bool, bool]]:
    """Give what is in use on each host, whether its VMs find a place elsewhere, and whether they will."""
    if not hosts:
        return {}
    used = known.instances(session, hosts, can)
    if not used:
        return {}
    moves = {(row.instance, row.host): row for row in session.execute(_MOVES, sid)}
    replaced = any(one.replaced for one in used)
    ready = known.ready(session) if replaced else {}
    made = ready.keys() | known.coming(session) if replaced else set()
    found: dict[str, list[Instance]] = defaultdict(list)
    pools: dict[str, set[str]] = defaultdict(set)
    # Hosts with VMs for which their provider has no room elsewhere.
    full: set[str] = set()
    for one in used:
        move = moves.get((one.id, one.host))
        found[one.host].append(
            Instance(
                id=one.id,
                project=one.project,
                allowed=one.allowed,
                until=one.until,
                replaced=one.replaced,
                move=MoveState(move.state) if move else None,
                move_how=InstanceAction(move.how) if move else None,
                move_since=move.begun if move else None,
                move_reason=(move.reason or "") if move else "",
            )
        )
        if one.pool is not None and one.replaced and (not move or move.state != MoveState.FAILED):
            pools[one.host].add(one.pool)
        if move and move.state == MoveState.WAITING and move.reason:
            full.add(one.host)
    return {
        host: (
            tuple(there),
            host not in full and all(_elsewhere(ready.get(pool, {}), host) for pool in pools[host]),
            host not in full and pools[host] <= made,
        )
        for host, there in found.items()
    }


def _elsewhere(ready: Mapping[str, int], host: str) -> int:
    """Count what is ready on other hosts; the pool makes more of it while it is used up."""
    return sum(number for name, number in ready.items() if name != host)


def _read_replies(session: Session, sid: str) -> dict[tuple[str, str, str, int], Reply]:
    found = {}
    for row in session.execute(_REPLIES, {"this_sid": sid}):
        actions = {
            instance: InstanceAction(action) for instance, action in row.instance_actions.items() if action in _ACTIONS
        }
        found[row.project, row.state, row.host, row.round] = Reply(
            asked=row.asked,
            reply_by=row.reply_by,
            agrees=None if row.answer is None else row.answer == f"ACK_{row.state}",
            instance_actions=actions,
            answer=row.answer or "",
        )
    return found
