"""The lab's workflow, with the states of the protocol: pure functions from a view of a session to what is next.

Hosts are emptied and maintained in their order, no more of them out of service at a time than the hint
``max_unavailable`` says. Whatever the session waits for is named, with its time where there is one.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from labctl.maintenance.states import DONE, FIRST, ActionType, HostState, InstanceAction, MoveState
from labctl.maintenance.workflow import (
    Drain,
    FailHost,
    Host,
    Instance,
    Move,
    Next,
    Progress,
    Reply,
    Return,
    Run,
    View,
    Want,
    Workflow,
)
from labctl.maintenance.workflows import hints
from labctl.maintenance.workflows.asking import (
    Answers,
    Question,
    Waits,
    affected,
    ends,
    in_use,
    reply_time,
    rounds,
    some,
)

SCALE_IN = "SCALE_IN"
PREPARE = "PREPARE_MAINTENANCE"
START = "START_MAINTENANCE"
PLANNED = "PLANNED_MAINTENANCE"
COMPLETE = "MAINTENANCE_COMPLETE"

#: How often projects are asked to scale in before the session gives up.
ROUNDS = 3
#: The states in which projects are asked about one host.
EMPTYING = (PREPARE, PLANNED)

_LEFT = (HostState.WAITING, HostState.DRAINING)
_IN_HAND = (HostState.MAINTAINING, HostState.CHECKING)
_OUT = (HostState.DRAINING, *_IN_HAND, HostState.FAILED)


class DefaultWorkflow(Workflow):
    """The lab's workflow."""

    @property
    def steps(self) -> Mapping[str, Callable[[View], Next]]:
        """Give the step of each state."""
        return STEPS

    def check(self, metadata: Mapping[str, Any]) -> list[str]:
        """List what is wrong with the hints."""
        return hints.mistakes(metadata)


# Hosts


def left(view: View) -> list[Host]:
    """List the hosts whose actions have not begun."""
    return [host for host in view.hosts if host.state in _LEFT]


def in_hand(view: View) -> list[Host]:
    """List the hosts whose actions or checks go on."""
    return [host for host in view.hosts if host.state in _IN_HAND]


def room(view: View) -> int:
    """Tell how many more hosts may be taken out of service."""
    return hints.read(view.metadata).max_unavailable - sum(host.state in _OUT for host in view.hosts)


def can_start(view: View) -> bool:
    """Tell whether there is a host that nobody uses and that can be maintained now."""
    empty = {host.state for host in left(view) if not host.instances}
    return HostState.DRAINING in empty or (HostState.WAITING in empty and room(view) > 0)


def choose(view: View) -> str:
    """Choose how to go on with the hosts that are left."""
    if in_hand(view) or not left(view) or can_start(view):
        return START
    # Those that are out of service already are the next ones.
    following = min(left(view), key=lambda host: host.state != HostState.DRAINING)
    # Of one that is out of service, what was to be made anew elsewhere has been asked for; that may come to nothing.
    remade = following.remade and following.state == HostState.WAITING
    return PREPARE if following.replaceable or remade or moving(following) else SCALE_IN


def moving(host: Host) -> bool:
    """Tell whether VMs are being moved away from a host; not those for which there is no room elsewhere."""
    return any(instance.move == MoveState.WAITING and not instance.move_reason for instance in host.instances)


def failure(view: View) -> str:
    """Say which hosts have failed, if any have."""
    return "; ".join(
        f"{host.name}: {host.reason or 'it has failed'}" for host in view.hosts if host.state == HostState.FAILED
    )


# The states


def maintenance(view: View) -> Next:
    """Tell all projects, wait for the time, run the pre actions."""
    if view.downloads == Progress.FAILED:
        return Next(failed=view.reason or "a download failed")
    question = Question(
        view,
        FIRST,
        affected(left(view)),
        since=view.entered,
        agreement_lasts=True,
        actions_at=view.maintenance_at,
    )
    answers = question.ask()
    late = view.entered + reply_time(view, FIRST) > view.maintenance_at > view.entered
    if late and (answers.do or answers.waiting):
        return Next(failed=f"{some(question.whom)} could answer until after maintenance_at; it must be later")
    if answers.refusal:
        return Next(failed=answers.refusal)
    waits = Waits()
    answers.add_to(waits)
    if view.downloads == Progress.RUNNING:
        waits.add("downloads")
    if view.now < view.maintenance_at:
        waits.add("maintenance_at", view.maintenance_at)
    if waits.texts:
        return waits.next(answers.do)
    return once(view, ActionType.PRE, view.pre) or Next(state=choose(view))


def once(view: View, of_type: ActionType, progress: Progress) -> Next | None:
    """Run the actions that run once; None: that is over."""
    if progress == Progress.FAILED:
        return Next(failed=view.reason or f"a {of_type} action failed")
    if progress == Progress.DONE:
        return None
    return Next(
        do=(Run(of_type),) if progress == Progress.NONE else (),
        waits_for=f"the {of_type} actions",
    )


def scale_in(view: View) -> Next:
    """Ask all projects to need less, until a host is free or its VMs find a place elsewhere."""
    if failed := failure(view):
        return Next(failed=failed)
    if (state := choose(view)) != SCALE_IN:
        return Next(state=state)
    whom = affected(left(view))
    asked = [
        [reply for reply in rounds(view, project, SCALE_IN) if reply.asked is not None and reply.asked >= view.entered]
        for project in whom
    ]
    number = max((len(replies) for replies in asked), default=0)
    ended = max((reply.reply_by or view.entered for replies in asked for reply in replies), default=view.entered)
    question = Question(view, SCALE_IN, whom, since=view.entered)
    answers = question.ask()
    if answers.refusal:
        return Next(failed=answers.refusal)
    waits = Waits()
    answers.add_to(waits)
    if not waits.texts and number and view.now >= ended:
        if number < ROUNDS:
            # Everybody has agreed, and their time is over, but it did not help.
            answers = Question(view, SCALE_IN, whom, since=view.entered, again=True).ask()
            answers.add_to(waits)
        elif hints.read(view.metadata).no_answer == hints.FAIL:
            return Next(failed=f"no host is free after {number} rounds of {SCALE_IN}, and no VM can be replaced")
    for host in left(view):
        waits.add(in_use(host), *ends(host))
    if view.now < ended:
        waits.times.append(ended)
    return waits.next(answers.do)


def _empty(view: View, state: str) -> Next:
    """Take the next hosts out of service and see to it that they become free."""
    if failed := failure(view):
        return Next(failed=failed)
    if in_hand(view) or not left(view) or can_start(view):
        return Next(state=START)
    waits = Waits()
    do: list[Want] = []
    draining = [host for host in left(view) if host.state == HostState.DRAINING]
    # Those whose VMs find no place elsewhere.
    stuck: list[Host] = []
    for host in draining:
        one = Emptying(view, state, host)
        if refusal := one.step():
            return Next(failed=refusal)
        do += one.do
        waits.texts += one.waits.texts
        waits.times += one.waits.times
        if one.stuck and not moving(host):
            stuck.append(host)
    following = next((host for host in left(view) if host.state == HostState.WAITING), None)
    # One at a time: what is ready elsewhere for the VMs of the next one is known when this one is out of service.
    if following is not None and room(view) > 0:
        # Where VMs are taken elsewhere, nobody knows for how many there is room.
        migrates = any(not one.replaced for host in draining for one in host.instances)
        if (following.replaceable and not migrates) or (following.remade and not draining):
            do.append(Drain(following.name))
            waits.add(in_use(following))
        elif not draining and not do:
            stuck.append(following)
    if stuck and not do and len(stuck) >= len(draining):
        moves = [one.move_since for host in stuck for one in host.instances if one.move_since and one.move_reason]
        begun = max(view.entered, *(host.since or view.entered for host in stuck), *moves)
        patient_until = begun + reply_time(view, state)
        names = some(host.name for host in stuck)
        if view.now < patient_until:
            waits.times.append(patient_until)
        elif not any(host.remade for host in stuck):
            if state == PREPARE:
                return Next(state=SCALE_IN)
            return Next(failed=_no_room(stuck) or f"no VM is ready elsewhere to take the place of those on {names}")
        waits.add(_no_room(stuck) or f"VMs that are ready elsewhere to take the place of those on {names}")
    return waits.next(do)


def _no_room(hosts: Iterable[Host]) -> str:
    """Say which VMs their providers have no room for elsewhere, empty if there are none."""
    said = [f"{one.id}: {one.move_reason}" for host in hosts for one in host.instances if one.move_reason]
    return some(said)


class Emptying:
    """One host that is out of service and in use."""

    def __init__(self, view: View, state: str, host: Host) -> None:
        self.view = view
        self.asked_in = state
        self.host = host
        self.do: list[Want] = []
        self.waits = Waits()
        #: There is nothing to take the place of its VMs.
        self.stuck = False

    def step(self) -> str:
        """Ask its projects and have its VMs moved; gives why the session cannot go on."""
        view, host = self.view, self.host
        longest = hints.read(view.metadata).host_timeout
        end = None if longest is None or host.since is None else host.since + timedelta(seconds=longest)
        if end is not None and view.now >= end:
            return f"{in_use(host).replace(' to be free of ', ' is still used by ')} after {longest:g} s"
        answers = self._ask()
        if answers.refusal:
            return answers.refusal
        self.do += answers.do
        answers.add_to(self.waits)
        for instance in host.instances:
            if failed := self._see_to(instance, answers.agreed.get(instance.project)):
                return failed
        self.waits.add(in_use(host), *ends(host), end)
        return ""

    def _ask(self) -> Answers:
        allowed = {action for instance in self.host.instances if instance.project for action in instance.allowed}
        return Question(
            self.view,
            self.asked_in,
            affected([self.host]),
            since=self.host.since or self.view.entered,
            host=self.host.name,
            states=EMPTYING,
            allowed=tuple(action for action in InstanceAction if action in allowed),
        ).ask()

    def _see_to(self, instance: Instance, reply: Reply | None) -> str:
        """Have an instance moved, if its project has agreed; gives why it cannot be moved."""
        if reply is None or instance.move == MoveState.WAITING:
            # Whoever has not agreed, or cannot be asked, is waited for; and so is what goes on already.
            self.stuck = self.stuck or bool(reply and instance.move_reason)
            return ""
        how = chosen(instance, reply)
        if how == InstanceAction.OWN_ACTION:
            return ""
        if instance.move == MoveState.FAILED:
            live = InstanceAction.LIVE_MIGRATE
            if instance.move_how != live or reply.instance_actions.get(instance.id) == live:
                return f"{instance.id} cannot be moved from {self.host.name}: {instance.move_reason}"
            # Its project has not asked for that.
            how = InstanceAction.MIGRATE
        if not instance.replaced or self.host.replaceable or moving(self.host):
            self.do.append(Move(instance.id, how))
        else:
            self.stuck = True
        return ""


def chosen(instance: Instance, reply: Reply) -> InstanceAction:
    """Tell what becomes of an instance: what its project has said, if that is possible; else it notices the least."""
    said = reply.instance_actions.get(instance.id)
    if said is not None and said in instance.allowed:
        return said
    gentle = (InstanceAction.LIVE_MIGRATE, InstanceAction.MIGRATE)
    return next((how for how in gentle if how in instance.allowed), InstanceAction.OWN_ACTION)


def start(view: View) -> Next:
    """Maintain the hosts that nobody uses, one after the other or some at a time."""
    do: list[Want] = []
    waits = Waits()
    for host in in_hand(view):
        _go_on(host, do, waits)
    failed = failure(view)
    if not failed and not any(isinstance(want, FailHost) for want in do):
        do += _begin(view, waits)
    if do or waits.texts:
        return waits.next(do)
    if failed:
        return Next(failed=failed)
    return Next(state=PLANNED if left(view) else COMPLETE)


def _go_on(host: Host, do: list[Want], waits: Waits) -> None:
    checking = host.state == HostState.CHECKING
    progress = host.check if checking else host.actions
    if progress == Progress.FAILED:
        what = "its check failed" if checking else "an action failed"
        do.append(FailHost(host.name, host.reason or what))
        return
    if progress == Progress.NONE:
        do.append(Run(ActionType.CHECK if checking else ActionType.HOST, host.name))
    elif progress == Progress.DONE:
        do.append(Return(host.name) if checking else Run(ActionType.CHECK, host.name))
        if checking:
            return
    waits.add(f"the check of {host.name}" if checking else f"the actions on {host.name}")


def _begin(view: View, waits: Waits) -> list[Want]:
    do: list[Want] = []
    free = room(view)
    for host in left(view):
        if host.instances:
            continue
        if host.state == HostState.DRAINING and not host.settled:
            waits.add(f"VMs that are just made, moved or destroyed on {host.name}")
            continue
        if host.state == HostState.DRAINING:
            do.append(Run(ActionType.HOST, host.name))
        elif free > 0:
            free -= 1
            do.append(Drain(host.name))
        else:
            continue
        waits.add(f"the actions on {host.name}")
    return do


def complete(view: View) -> Next:
    """Run the post actions, and tell the projects that it is over."""
    if failed := failure(view):
        return Next(failed=failed)
    if left(view) or in_hand(view):
        return Next(state=START)
    if (post := once(view, ActionType.POST, view.post)) is not None:
        return post
    told = sorted({key[0] for key, reply in view.replies.items() if reply.asked is not None})
    answers = Question(view, COMPLETE, dict.fromkeys(told, ()), since=view.entered, agreement_lasts=True).ask()
    if answers.refusal:
        return Next(failed=answers.refusal)
    waits = Waits()
    answers.add_to(waits)
    if waits.texts:
        return waits.next(answers.do)
    return Next(state=DONE)


def prepare(view: View) -> Next:
    """Empty the next hosts; if their VMs find no place elsewhere, ask projects to need less."""
    return _empty(view, PREPARE)


def planned(view: View) -> Next:
    """Empty the next hosts."""
    return _empty(view, PLANNED)


STEPS: Mapping[str, Callable[[View], Next]] = {
    FIRST: maintenance,
    SCALE_IN: scale_in,
    PREPARE: prepare,
    START: start,
    PLANNED: planned,
    COMPLETE: complete,
}
