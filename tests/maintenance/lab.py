"""An engine of sessions, driven step by step under a stopped clock; actions are done by whoever the test says."""

from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from labctl.events.models import Event
from labctl.maintenance.engine import Engine
from labctl.maintenance.models import (
    MaintenanceAction,
    MaintenanceHost,
    MaintenanceMove,
    MaintenanceNotice,
    MaintenanceReply,
    MaintenanceSession,
    MaintenanceStep,
)
from labctl.settings import MAINTENANCE_REPLIES
from labctl.vms.models import VM
from labctl.vms.states import VMState


class Lab:
    """The engine, and a look at what it has done."""

    def __init__(self, session: Session, clock: Any) -> None:
        self.session = session
        self.clock = clock
        self.engine = Engine(MAINTENANCE_REPLIES, poll=0)
        #: Whether there is an engine of VMs; else what is not needed any more is gone at once.
        self.vms_are_looked_after = False

    def tick(self, **advance: float) -> None:
        """Let the engine do what there is to do now, after moving the clock."""
        self.session.flush()
        self.clock.advance(**advance)
        self.engine.tick()
        if not self.vms_are_looked_after:
            gone = {"state": VMState.DESTROYED, "destroyed": self.clock()}
            self.session.execute(update(VM).where(VM.state == VMState.COMPLETED).values(gone))
        self.session.expire_all()

    def live(self, seconds: float, step: float = 1) -> None:
        """Let time pass."""
        for _ in range(round(seconds / step)):
            self.tick(seconds=step)

    def until_ended(self, row: MaintenanceSession, seconds: float = 100) -> MaintenanceSession:
        for _ in range(round(seconds)):
            self.tick(seconds=1)
            if row.state in ("MAINTENANCE_DONE", "MAINTENANCE_FAILED"):
                return row
        raise AssertionError(f"it is in {row.state} and waits for {row.waits_for}")

    def hosts(self, row: MaintenanceSession) -> dict[str, str]:
        found = self.session.execute(
            select(MaintenanceHost.host, MaintenanceHost.state)
            .where(MaintenanceHost.session_id == row.id)
            .order_by(MaintenanceHost.position)
        )
        return {row.host: row.state for row in found}

    def host(self, row: MaintenanceSession, name: str) -> MaintenanceHost:
        return self.session.get_one(MaintenanceHost, (row.id, name))

    def actions(self, row: MaintenanceSession) -> list[MaintenanceAction]:
        query = select(MaintenanceAction).where(MaintenanceAction.session_id == row.id)
        return list(self.session.scalars(query.order_by(MaintenanceAction.started, MaintenanceAction.number)))

    def steps(self, row: MaintenanceSession) -> list[str]:
        query = select(MaintenanceStep.text).where(MaintenanceStep.session_id == row.id)
        return list(self.session.scalars(query.order_by(MaintenanceStep.id)))

    def states(self, row: MaintenanceSession) -> list[str]:
        """The states it has entered, by the events."""
        query = select(Event).where(Event.kind == "maintenance.state", Event.subject == f"maintenance/{row.id}")
        return [event.data["state"] for event in self.session.scalars(query.order_by(Event.seq))]

    def notices(self, row: MaintenanceSession) -> list[tuple[str, str]]:
        query = select(MaintenanceNotice).where(MaintenanceNotice.session_id == row.id)
        return [
            (each.project, each.body["state"]) for each in self.session.scalars(query.order_by(MaintenanceNotice.id))
        ]

    def moves(self, row: MaintenanceSession) -> list[MaintenanceMove]:
        query = select(MaintenanceMove).where(MaintenanceMove.session_id == row.id)
        return list(self.session.scalars(query.order_by(MaintenanceMove.instance)))

    def answer(self, row: MaintenanceSession, project: str, answer: str, **actions: str) -> None:
        """Answer the question that waits."""
        query = select(MaintenanceReply).where(
            MaintenanceReply.session_id == row.id,
            MaintenanceReply.project == project,
            MaintenanceReply.answer.is_(None),
            MaintenanceReply.asked.is_not(None),
        )
        reply = self.session.scalars(query).one()
        reply.answer, reply.instance_actions, reply.answered = answer, actions, self.clock()
        self.session.execute(update(MaintenanceSession).where(MaintenanceSession.id == row.id).values(due=self.clock()))
        self.session.flush()

    def now(self) -> datetime:
        moment: datetime = self.clock()
        return moment
