"""What a session wants of other hosts, with real processes: the worker is killed in the middle of it.

There is one kill, while a file is half fetched for one session and a notice of another one is being taken.
"""

import hashlib
import hmac
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from tests.maintenance import web

from .lab import PATIENCE, until
from .maintenance_lab import ENDED, LONG, MaintenanceLab, running

FILE = random.Random(1).randbytes(1024 * 1024)
HALF = len(FILE) // 2
SHA256 = hashlib.sha256(FILE).hexdigest()
SECRET = "at least sixteen characters"


class Receiver(ThreadingHTTPServer):
    """A project's: it agrees to each notice once, by the name of the delivery, and does not answer the first POST."""

    daemon_threads = True

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Notified)
        #: Its credential.
        self.headers = headers
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        #: The names of all deliveries and what was in them, in order.
        self.received: list[tuple[str, Any]] = []
        self.not_genuine: list[str] = []
        self.agreed: list[str] = []
        self.closing = threading.Event()

    def agree(self, delivery: str, notice: Any) -> None:
        if notice.get("reply_at") and delivery not in self.agreed:
            self.agreed.append(delivery)
            answer = {"state": f"ACK_{notice['state']}"}
            requests.put(notice["reply_url"], json=answer, headers=self.headers, timeout=PATIENCE).raise_for_status()


class Notified(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        delivery, timestamp = self.headers["X-Labctl-Delivery"], self.headers["X-Labctl-Timestamp"]
        signed = hmac.new(SECRET.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        if self.headers["X-Labctl-Signature"] != f"sha256={signed}":
            self.server.not_genuine.append(delivery)
        notice = orjson.loads(body)
        self.server.received.append((delivery, notice))
        if len(self.server.received) == 1:
            self.server.closing.wait(LONG)
            return
        self.send_response(204)
        self.end_headers()
        self.server.agree(delivery, notice)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@dataclass
class Killed:
    """A labctl whose worker was killed in the middle of two sessions."""

    lab: MaintenanceLab
    files: web.Web
    receiver: Receiver
    #: The session that needs a file, and the one whose project is told.
    fetches: str
    tells: str
    #: What lay there when half of the file was there.
    half: list[Path]

    @property
    def url(self) -> str:
        return self.files.url("/firmware.tgz")

    def there(self) -> list[Path]:
        """List the files of the session."""
        home = self.lab.up.home / "maintenance" / self.fetches
        return [path for path in home.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver({}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def killed(receiver: Receiver) -> Iterator[Killed]:
    """Begin both, kill the worker in the middle of both; from then on everything is answered."""
    # As long as something goes on, it can be seen what it was given.
    slow = {"seconds": {"deploy": 1}}
    with running(executor=slow, LABCTL_MAINTENANCE_PRIVATE_URLS="true") as lab, web.running() as files:
        receiver.headers = lab.headers
        _, host = lab.give("ada")
        subscription = {"url": receiver.url, "secret": SECRET}
        assert lab.ask("PUT", "/api/maintenance/subscriptions/ada", json=subscription).status_code == 200
        begun = Killed(lab, files, receiver, "", "", [])
        files.answers["/firmware.tgz"] = web.Answer(body=FILE[:HALF], length=str(len(FILE)), then=web.hangs)
        roles = [{"plugin": "role", "type": kind, "metadata": {"role": "firmware"}} for kind in ("pre", "host")]
        wanted = f"{begun.url}#sha256={SHA256}"
        begun.fetches = lab.begin(workflow="default", hosts=["localhost"], actions=roles, download=[wanted])

        def is_half_there() -> bool:
            begun.half = begun.there()
            return any(path.stat().st_size == HALF for path in begun.half)

        until(is_half_there, "half of the file is there")
        begun.tells = lab.begin(workflow="default", hosts=[host], actions=[])
        until(lambda: receiver.received, "ada is being told")
        lab.kill(lab.up.worker, lambda: files.answers.update({"/firmware.tgz": web.Answer(body=FILE)}))
        yield begun


def test_a_file_whose_worker_was_killed_when_half_was_there_is_fetched_again_and_the_actions_get_the_whole(
    killed: Killed,
) -> None:
    lab, sid = killed.lab, killed.fetches
    at_work = "SELECT key, unmasked->'extra_vars'->'downloads' FROM remote_jobs WHERE unmasked IS NOT NULL"
    got: dict[str, dict[str, str]] = {}

    def has_ended() -> bool:
        # What an action was given is forgotten when it ends.
        for key, paths in lab.sql(f"{at_work} AND operation = 'deploy' AND key LIKE %s", f"maintenance/{sid}/%"):
            got[key] = {url: hashlib.sha256(Path(path).read_bytes()).hexdigest() for url, path in paths.items()}
        return lab.state(sid) in ENDED

    until(has_ended, "the session has ended", LONG)
    found = lab.ask("GET", f"/v1/maintenance/{sid}").json()
    assert found["state"] == "MAINTENANCE_DONE", found
    assert list(got.values()) == [{killed.url: SHA256}] * 2
    # No action would have found the half under the name that it looks for, nor does anybody now.
    assert [path.name for path in killed.half] == [".firmware.tgz.part"]
    assert [path.name for path in killed.there()] == ["firmware.tgz"]
    assert [(request.method, request.headers.get("range")) for request in killed.files.requests] == [("GET", None)] * 2


def test_a_notice_whose_worker_was_killed_while_it_was_taken_comes_again_under_the_same_name(killed: Killed) -> None:
    lab, receiver, sid = killed.lab, killed.receiver, killed.tells
    until(lambda: lab.state(sid) in ENDED, "the session has ended", LONG)
    found = lab.ask("GET", f"/v1/maintenance/{sid}").json()

    assert found["state"] == "MAINTENANCE_DONE", found
    assert receiver.not_genuine == []
    first, again, *others = receiver.received
    assert first == again
    # Whoever counts by the name is told everything once, in order.
    told = [notice["state"] for _, notice in (first, *others)]
    assert told == ["MAINTENANCE", "PREPARE_MAINTENANCE", "INSTANCE_ACTION_DONE", "MAINTENANCE_COMPLETE"]
    assert max(Counter(name for name, _ in (first, *others)).values()) == 1
    assert len(receiver.agreed) == 3
    assert {(reply["state"], reply["answer"]) for reply in found["replies"]} == {
        (state, f"ACK_{state}") for state in told if state != "INSTANCE_ACTION_DONE"
    }
    assert [(host["state"], host["out_of_service"]) for host in found["hosts"]] == [("done", False)]
    assert [owner for owner, *_ in lab.owned()] == ["ada"]
    # The worker that was killed could not say how its delivery went.
    attempts = "SELECT attempts FROM maintenance_notices WHERE session_id = %s AND project = 'ada' AND due IS NULL"
    until(lambda: lab.sql(attempts, sid) == [(1,)] * 4, "it was tried once to deliver each notice")
