"""What workflows ask of projects, what they make of the answers, and how they say what they wait for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from labctl.maintenance.states import InstanceAction
from labctl.maintenance.workflow import Host, Next, Notify, Reply, View, Want
from labctl.maintenance.workflows import hints

#: How many names are told of what is waited for.
NAMES = 5
#: Seconds for an answer, where the settings say nothing.
REPLY_SECONDS = 60.0

# What is waited for


@dataclass
class Waits:
    """What is waited for, and until when."""

    texts: list[str] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)

    def add(self, text: str, *times: datetime | None) -> None:
        """Wait for one more thing."""
        self.texts.append(text)
        self.times += [time for time in times if time is not None]

    def next(self, do: Iterable[Want] = ()) -> Next:
        """Do something, and wait."""
        return Next(do=tuple(do), waits_for="; ".join(self.texts), until=min(self.times, default=None))


def some(names: Iterable[str]) -> str:
    """Name a few of many."""
    names = list(names)
    rest = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {rest} more" if rest > 0 else "")


def in_use(host: Host) -> str:
    """Say who uses a host."""
    return f"{host.name} to be free of " + some(f"{one.id} ({one.project or 'nobody'})" for one in host.instances)


def ends(host: Host) -> list[datetime]:
    """Give when the instances of a host end by themselves, as far as they do."""
    return [one.until for one in host.instances if one.until is not None]


# What projects are asked


@dataclass
class Answers:
    """What projects have answered to one question."""

    do: list[Notify] = field(default_factory=list)
    #: Who does not agree, or has not answered in time, where that ends the session.
    refusal: str = ""
    agreed: dict[str, Reply] = field(default_factory=dict)
    #: Who may still answer, and until when.
    waiting: dict[str, datetime] = field(default_factory=dict)

    def add_to(self, waits: Waits) -> None:
        """Say who is waited for."""
        if self.do:
            waits.add("the answer of " + some(notice.project for notice in self.do), *(n.reply_by for n in self.do))
        if self.waiting:
            waits.add("the answer of " + some(self.waiting), *self.waiting.values())


@dataclass(frozen=True)
class Question:
    """Something that projects are asked, each about some of its instances."""

    view: View
    state: str
    whom: Mapping[str, Sequence[str]]
    #: Answers to what was asked before count only if they agree, and ``agreement_lasts``.
    since: datetime
    agreement_lasts: bool = False
    host: str = ""
    #: The states in which the same may have been asked.
    states: tuple[str, ...] = ()
    allowed: tuple[InstanceAction, ...] = ()
    actions_at: datetime | None = None
    #: Ask anew, whatever was answered.
    again: bool = False

    def asked(self, project: str) -> Reply | None:
        """Give what a project was asked last, if that still counts."""
        states = self.states or (self.state,)
        asked = [reply for state in states for reply in rounds(self.view, project, state, self.host)]
        last = max(asked, key=_when, default=None)
        if last is None or (_when(last) < self.since and not (self.agreement_lasts and last.agrees)):
            return None
        return last

    def ask(self) -> Answers:
        """Tell what was answered, and who is yet to be asked."""
        view, answers = self.view, Answers()
        waits = hints.read(view.metadata).no_answer == hints.WAIT
        for project, instances in sorted(self.whom.items()):
            reply = None if self.again else self.asked(project)
            if reply is None:
                answers.do.append(self._notice(project, instances))
            elif reply.agrees:
                answers.agreed[project] = reply
            elif reply.agrees is False:
                answers.refusal = f"{project} does not agree to {self.state}: {reply.answer or 'it said no'}"
            elif reply.reply_by is not None and view.now < reply.reply_by:
                answers.waiting[project] = reply.reply_by
            elif not waits:
                answers.refusal = f"{project} has not answered to {self.state} in time"
        return answers

    def _notice(self, project: str, instances: Sequence[str]) -> Notify:
        view = self.view
        return Notify(
            project=project,
            state=self.state,
            instances=tuple(instances),
            reply_by=view.now + reply_time(view, self.state),
            allowed_actions=self.allowed,
            actions_at=self.actions_at or view.now,
            host=self.host,
            round=1 + len(rounds(view, project, self.state, self.host)),
        )


def _when(reply: Reply) -> datetime:
    assert reply.asked is not None
    return reply.asked


def rounds(view: View, project: str, state: str, host: str = "") -> list[Reply]:
    """List what a project was asked, a reply for each round, less what it has answered before it was asked."""
    return [
        reply for key, reply in view.replies.items() if key[:3] == (project, state, host) and reply.asked is not None
    ]


def reply_time(view: View, state: str) -> timedelta:
    """Say how long projects have to answer."""
    return timedelta(seconds=view.reply_seconds.get(state, REPLY_SECONDS))


def affected(hosts: Iterable[Host]) -> dict[str, list[str]]:
    """List the instances on hosts by project; nobody can be told of those that are nobody's."""
    found: dict[str, list[str]] = {}
    for host in hosts:
        for instance in host.instances:
            if instance.project:
                found.setdefault(instance.project, []).append(instance.id)
    return found
