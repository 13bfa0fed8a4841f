"""What vmfloaty sends, request by request, and what today's server answered to it (tests/vms/vmfloaty.jsonl)."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import clock
from labctl.tokens import service as tokens
from labctl.vms import on_demand
from labctl.vms.models import VM, PoolState, VMWork
from labctl.vms.states import VMState, WorkKind
from tests.vms.conftest import Serve
from tests.vms.factories import make_day, make_ready

EXCHANGES = [json.loads(line) for line in (Path(__file__).parent / "vmfloaty.jsonl").read_text().splitlines()]


def the_lab(session: Session) -> None:
    """Have what the recorded server had."""
    tokens.add_user(session, "jdoe", password="secret")
    make_ready(session, i386=5, x86_64=4)
    for pool in ("debian-7-i386", "debian-7-x86_64"):
        make_day(session, clock.now().date(), pool)
        session.add(PoolState(pool=pool, last_boot=clock.now()))
    session.flush()


def the_engine(session: Session) -> None:
    """Do what the engine does in the background."""
    for work in session.scalars(select(VMWork).where(VMWork.kind == WorkKind.SNAPSHOT)):
        session.execute(update(VM).where(VM.id == work.vm_id).values(snapshots=[work.argument]))


def the_makers(session: Session) -> None:
    """Make what was requested."""
    session.execute(update(VM).where(VM.state == VMState.REQUESTED).values(state=VMState.RUNNING, checkout=clock.now()))
    on_demand.finish(session)


class Names:
    """What the recorded server called things that have other names here."""

    def __init__(self) -> None:
        self.ours: dict[str, str] = {}

    def translate(self, recorded: str) -> str:
        for theirs, ours in self.ours.items():
            recorded = recorded.replace(theirs, ours)
        return recorded

    def learn(self, recorded: Any, answered: Any) -> None:
        """Find the names of hosts, tokens, snapshots and requests, which stand at the same places."""
        if isinstance(recorded, dict):
            for key, value in recorded.items():
                if key in ("hostname", "token", "snapshot", "request_id"):
                    self._learn(value, answered[key])
                elif key in answered:
                    self.learn(value, answered[key])
                elif isinstance(answered, dict) and len(recorded) == len(answered):
                    self.learn(value, answered[self.translate(key)])

    def _learn(self, recorded: Any, answered: Any) -> None:
        if isinstance(recorded, list):
            self.ours |= dict(zip(recorded, answered, strict=True))
        else:
            self.ours[recorded] = answered


def send(app: TestApp, exchange: dict[str, Any], names: Names) -> Any:
    headers = {name: names.translate(value) for name, value in exchange["headers"].items()}
    path, body = names.translate(exchange["path"]), exchange["body"].encode()
    return app.request(path, method=exchange["method"], headers=headers, body=body, status="*")


def same_shape(recorded: Any, answered: Any, where: str = "") -> None:
    """Check that an answer has the keys of the recorded one, with values of the same types; it may have more."""
    if isinstance(recorded, dict):
        assert isinstance(answered, dict), where
        for key, value in recorded.items():
            assert key in answered, f"{where}.{key}"
            same_shape(value, answered[key], f"{where}.{key}")
    elif isinstance(recorded, list):
        assert isinstance(answered, list), where
        assert len(answered) == len(recorded), where
        for one, other in zip(recorded, answered, strict=True):
            same_shape(one, other, f"{where}[]")
    elif isinstance(recorded, bool | str) or recorded is None:
        assert type(answered) is type(recorded), where
    else:
        assert isinstance(answered, int | float) and not isinstance(answered, bool), where


#: Values that are the same whatever the names: the words that vmfloaty reads or shows.
SAME = ("ok", "template", "state", "domain", "disk", "ready", "pending", "failure", "alias", "user")


def same_values(recorded: Any, answered: Any) -> None:
    """Check the values that do not depend on time and chance."""
    if isinstance(recorded, dict):
        for key, value in recorded.items():
            if key in SAME and isinstance(value, str | bool | list):
                assert answered[key] == value, key
            elif key in answered:
                same_values(value, answered[key])


def test_vmfloaty_gets_what_it_got_before(serve: Serve, session: Session) -> None:
    app = serve(vm_lifetime=24)
    the_lab(session)
    names = Names()
    asked = False
    for number, exchange in enumerate(EXCHANGES):
        what = f"{number}: {exchange['method']} {exchange['path'][:60]}"
        if "/snapshot/" in exchange["path"]:
            the_engine(session)
        if "/ondemandvm/" in exchange["path"] and exchange["method"] == "GET" and exchange["status"] != 404:
            if asked:
                the_makers(session)
            asked = True
        answer = send(app, exchange, names)
        assert answer.status_int == exchange["status"], f"{what}: {answer.text}"
        assert answer.content_type == exchange["answer_headers"]["content-type"], what
        assert ("WWW-Authenticate" in answer.headers) == ("www-authenticate" in exchange["answer_headers"]), what
        recorded = json.loads(exchange["answer"])
        names.learn(recorded, answer.json)
        recorded = json.loads(names.translate(exchange["answer"]))
        if "summary" not in exchange["path"]:
            same_shape(recorded, answer.json, what)
            same_values(recorded, answer.json)


def test_the_summary_has_the_keys_it_had(serve: Serve, session: Session) -> None:
    the_lab(session)
    app = serve()
    name = app.post("/api/v1/vm/debian-7-i386").json["debian-7-i386"]["hostname"]
    app.put_json(f"/api/v1/vm/{name}", {"tags": {"department": "engineering", "user": "jdoe"}})
    (exchange,) = (each for each in EXCHANGES if each["path"].endswith("/summary"))

    same_shape(json.loads(exchange["answer"]), app.get("/api/v1/summary").json, "summary")
