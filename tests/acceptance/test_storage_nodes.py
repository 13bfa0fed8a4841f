"""Storage nodes that die and come back under a running labctl: nobody is given a dead one, and nobody does anything."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.nodes.servers import Storage, make_certificate, running

from .lab import Up, until

CLIENTS = 16


@dataclass(frozen=True)
class Answer:
    began: float
    ended: float
    status: int
    text: str


class Client(threading.Thread):
    """A build job that asks for the next node, again and again."""

    def __init__(self, up: Up, credential: tuple[str, str]) -> None:
        super().__init__()
        self.up = up
        self.credential = credential
        self.answers: list[Answer] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            answer = self.up.get("/api/nodes/next/", auth=self.credential)
            self.answers.append(Answer(began, time.monotonic(), answer.status_code, answer.text))

    def given_since(self, moment: float) -> set[str]:
        return {answer.text for answer in self.answers if answer.began > moment}


@contextmanager
def asking(up: Up, credential: tuple[str, str]) -> Iterator[list[Client]]:
    clients = [Client(up, credential) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join()


def url(storage: Storage) -> str:
    return f"https://127.0.0.1:{storage.port}/"


def node(up: Up, storage: Storage) -> dict[str, Any]:
    return dict(up.get(f"/api/nodes/127.0.0.1:{storage.port}/").json())


def test_a_node_that_dies_is_given_to_nobody_and_comes_back_by_itself(
    start: Callable[..., Up], home: object, tmp_path: Path
) -> None:
    certificate = make_certificate(tmp_path)
    up = start(home, SSL_CERT_FILE=str(certificate)).wait_until_ready()
    credential = ("admin", (up.home / "admin.token").read_text().strip())
    with running(certificate) as living, ExitStack() as life:
        mortal = life.enter_context(running(certificate))
        for storage in (living, mortal):
            path = f"/api/nodes/127.0.0.1:{storage.port}/"
            assert requests.post(up.url + path, json={}, auth=credential, timeout=20).json() == {}
            assert node(up, storage)["healthy"] is True
        both = {url(living), url(mortal)}
        with asking(up, credential) as clients:
            until(lambda: all(client.given_since(0) == both for client in clients), "everybody is given both")
            life.close()
            dead = time.monotonic()
            until(lambda: not node(up, mortal)["healthy"], "the dead one is out")
            out = time.monotonic()
            until(lambda: all(client.given_since(out) for client in clients), "everybody is given the other one")
            alive = time.monotonic()
            life.enter_context(running(certificate, mortal.port))
            until(lambda: all(url(mortal) in client.given_since(alive) for client in clients), "it is back", 25)
    answers = [answer for client in clients for answer in client.answers]
    # Nobody notices anything: each node is asked in the very request that gives it out.
    assert {answer.status for answer in answers} == {200}
    assert {answer.text for answer in answers} == both
    assert {answer.text for answer in answers if dead < answer.began < out} <= {url(living)}
    # One that began before the other node was back may end after that.
    assert {answer.text for answer in answers if out < answer.began and answer.ended < alive} == {url(living)}
    state = node(up, mortal)
    assert (state["healthy"], state["down_count"]) == (True, 0)
    assert (up.messages.count(" node_out "), up.messages.count(" node_back ")) == (0, 1)
