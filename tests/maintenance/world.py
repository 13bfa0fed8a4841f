"""A lab out of plain values, in which a workflow's session goes on: what it wants is done, and chance does the rest."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

from labctl.maintenance.states import (
    DONE,
    FIRST,
    HOST_LIFE,
    ActionType,
    HostState,
    InstanceAction,
    MoveState,
)
from labctl.maintenance.workflow import (
    Drain,
    FailHost,
    Host,
    Instance,
    Move,
    Next,
    Notify,
    Progress,
    Reply,
    Return,
    Run,
    View,
    Want,
    Workflow,
)

from .views import MACHINE, NOW, SECONDS, VM

OUT = (HostState.DRAINING, HostState.MAINTAINING, HostState.CHECKING, HostState.FAILED)
PROJECTS = ("ada", "bob", "carol", "")
#: Steps that may be taken at one moment.
AT_ONCE = 100


@dataclass
class Manners:
    """How likely things are that may happen."""

    agree: float = 0.9
    #: At each moment.
    answer: float = 0.6
    early: float = 0.1
    fail: float = 0.03
    leave: float = 0.3
    come: float = 0.1
    ready: float = 0.8
    move_fails: float = 0.05
    add_host: float = 0.02


KIND = Manners(agree=1, answer=1, early=0, fail=0, leave=0.5, come=0.05, ready=1, move_fails=0, add_host=0)


@dataclass
class World:
    """One session and everything around it."""

    workflow: Workflow
    chance: Random
    metadata: dict[str, Any] = field(default_factory=dict)
    manners: Manners = field(default_factory=Manners)
    number: int = 3
    now: datetime = NOW
    state: str = FIRST
    failed: str | None = None
    waits_for: str = ""

    def __post_init__(self) -> None:
        self.entered = self.now
        self.maintenance_at = self.now + timedelta(seconds=self.chance.choice([-10, 0, 30, 600]))
        self.hosts: dict[str, Host] = {}
        self.replies: dict[tuple[str, str, str, int], Reply] = {}
        self.actions = {ActionType.PRE: Progress.NONE, ActionType.POST: Progress.NONE}
        self.names = 0
        self.visited = [FIRST]
        self.ran: list[tuple[str, str]] = []
        for _ in range(self.number):
            self.add_host()

    @property
    def most(self) -> int:
        return int(self.metadata.get("max_unavailable", 1))

    @property
    def ended(self) -> bool:
        return self.state == DONE or self.failed is not None

    def add_host(self) -> None:
        name = f"h{len(self.hosts)}"
        self.hosts[name] = Host(name, HostState.WAITING)
        for _ in range(self.chance.randrange(3)):
            self.come(name)

    def come(self, name: str) -> None:
        """Somebody takes something on a host that is in service."""
        self.names += 1
        project = self.chance.choice(PROJECTS)
        on_vm = not project or self.chance.random() < 0.7
        until = self.now + timedelta(seconds=self.chance.randrange(10, 5000)) if on_vm else None
        allowed = VM if on_vm and project else MACHINE if project else frozenset[InstanceAction]()
        host = self.hosts[name]
        instance = Instance(f"i{self.names}", project, allowed, until)
        self.hosts[name] = replace(host, instances=(*host.instances, instance))

    def view(self) -> View:
        return View(
            state=self.state,
            entered=self.entered,
            now=self.now,
            maintenance_at=self.maintenance_at,
            metadata=self.metadata,
            hosts=tuple(self.hosts.values()),
            replies=dict(self.replies),
            reply_seconds=SECONDS,
            pre=self.actions[ActionType.PRE],
            post=self.actions[ActionType.POST],
            reason="",
        )

    # What the session does

    def run(self, moments: int = 3000) -> "World":
        """Let the session go on until it has ended."""
        for _ in range(moments):
            until = self.settle()
            if self.ended:
                return self
            # It is looked at every second, but nothing would happen then.
            step = timedelta(seconds=self.chance.choice([1, 5, 20, 60]))
            self.now = min(self.now + step, until) if until is not None else self.now + step
            self.happen()
        raise AssertionError(f"it has not ended in {self.state}, and waits for {self.waits_for!r}: {self.hosts}")

    def settle(self) -> datetime | None:
        """Take all steps that can be taken at this moment; gives until when it waits at the latest."""
        for _ in range(AT_ONCE):
            view = self.view()
            step = self.workflow.steps[self.state]
            what = step(view)
            assert what == step(view), "it remembers something"
            changed = self.apply(what)
            if self.ended:
                return None
            if not changed:
                assert what.waits_for, f"it waits in {self.state}, and does not say for what"
                assert what.until is None or what.until > self.now, f"{what.waits_for}: that time is over"
                self.waits_for = what.waits_for
                return what.until
        raise AssertionError(f"it never comes to rest: {self.visited[-10:]}")

    def apply(self, what: Next) -> bool:
        done = [self.carry_out(want) for want in what.do]
        if what.failed is not None:
            assert what.failed
            self.failed = what.failed
            return True
        if what.state is not None:
            assert what.state == DONE or what.state in self.workflow.steps
            if what.state != self.state:
                self.state, self.entered = what.state, self.now
                self.visited.append(what.state)
                return True
        return any(done)

    def carry_out(self, want: Want) -> bool:
        """Do what is wanted, as the engine does; tells whether that changed anything."""
        match want:
            case Notify():
                return self.notify(want)
            case Drain(name):
                if self.hosts[name].state != HostState.WAITING:
                    return False
                assert not self.any_failed, "a host is begun after a failed one"
                self.to(name, HostState.DRAINING, since=self.now)
                assert sum(host.state in OUT for host in self.hosts.values()) <= self.most, (
                    "too many are out of service"
                )
            case Move(instance, how):
                return self.move(instance, how)
            case Run(kind, ""):
                assert self.actions[kind] == Progress.NONE, "it runs once"
                self.actions[kind] = Progress.RUNNING
                self.ran.append((kind, ""))
            case Run(kind, name):
                self.run_on(kind, name)
            case Return(name):
                assert self.hosts[name].check == Progress.DONE, "it has not been found well"
                self.to(name, HostState.DONE, since=None)
            case FailHost(name, reason):
                assert reason
                self.to(name, HostState.FAILED, reason=reason)
        return True

    @property
    def any_failed(self) -> bool:
        return any(host.state == HostState.FAILED for host in self.hosts.values())

    def to(self, name: str, state: HostState, **changes: Any) -> None:
        host = self.hosts[name]
        assert HOST_LIFE.allows(host.state, state), f"{host.state} to {state}"
        self.hosts[name] = replace(host, state=state, **changes)

    def run_on(self, kind: ActionType, name: str) -> None:
        host = self.hosts[name]
        self.ran.append((kind, name))
        if kind == ActionType.HOST:
            assert not host.instances, "somebody uses it"
            assert not self.any_failed or host.state == HostState.MAINTAINING, "a host is begun after a failed one"
            self.to(name, HostState.MAINTAINING, actions=Progress.RUNNING)
        else:
            assert host.actions == Progress.DONE
            self.to(name, HostState.CHECKING, check=Progress.RUNNING)

    def notify(self, want: Notify) -> bool:
        key = (want.project, want.state, want.host, want.round)
        assert want.project and want.reply_by > self.now
        assert key not in self.replies or self.replies[key].asked is None, "it is asked twice"
        early = self.replies.pop((want.project, want.state, "", 0), None)
        agrees = early.agrees if early is not None else None
        self.replies[key] = Reply(self.now, want.reply_by, agrees)
        return True

    def move(self, name: str, how: InstanceAction) -> bool:
        for host in self.hosts.values():
            for instance in host.instances:
                if instance.id == name and instance.move is None:
                    assert host.state == HostState.DRAINING and how in instance.allowed
                    self.change(host, instance, move=MoveState.WAITING)
                    return True
        return False

    # What happens by itself

    def change(self, host: Host, instance: Instance, **changes: Any) -> None:
        after = tuple(replace(one, **changes) if one == instance else one for one in self.hosts[host.name].instances)
        self.hosts[host.name] = replace(self.hosts[host.name], instances=after)

    def leave(self, host: Host, instance: Instance) -> None:
        after = tuple(one for one in self.hosts[host.name].instances if one.id != instance.id)
        self.hosts[host.name] = replace(self.hosts[host.name], instances=after)

    def maybe(self, likely: float) -> bool:
        return self.chance.random() < likely

    def happen(self) -> None:
        """Let something happen, perhaps."""
        manners = self.manners
        for key, reply in self.replies.items():
            if reply.agrees is None and self.maybe(manners.answer):
                said = {one.id: self.chance.choice(list(InstanceAction)) for one in self.instances(key[2])}
                self.replies[key] = replace(reply, agrees=self.maybe(manners.agree), instance_actions=said)
        if self.maybe(manners.early):
            key = (self.chance.choice(PROJECTS[:3]), self.chance.choice(list(SECONDS)), "", 0)
            self.replies[key] = Reply(None, None, True)
        for kind, progress in self.actions.items():
            self.actions[kind] = self.further(progress)
        for name, host in list(self.hosts.items()):
            self.happen_to(name, host)
        if self.maybe(manners.add_host) and len(self.hosts) < 8:
            self.add_host()

    def instances(self, name: str) -> tuple[Instance, ...]:
        return self.hosts[name].instances if name in self.hosts else ()

    def further(self, progress: Progress) -> Progress:
        if progress != Progress.RUNNING or self.maybe(0.3):
            return progress
        return Progress.FAILED if self.maybe(self.manners.fail) else Progress.DONE

    def happen_to(self, name: str, host: Host) -> None:
        manners = self.manners
        self.hosts[name] = replace(
            host,
            actions=self.further(host.actions),
            check=self.further(host.check),
            replaceable=self.maybe(manners.ready),
        )
        for instance in host.instances:
            over = instance.until is not None and instance.until <= self.now
            given_back = instance.project != "" and self.maybe(manners.leave / 10)
            if over or given_back or (instance.move == MoveState.WAITING and self.maybe(0.5)):
                self.leave(host, instance)
            elif instance.move == MoveState.WAITING and self.maybe(manners.move_fails):
                self.change(host, instance, move=MoveState.FAILED)
        if host.state in (HostState.WAITING, HostState.DONE, HostState.SKIPPED) and self.maybe(manners.come / 10):
            self.come(name)
