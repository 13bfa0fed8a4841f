"""Following over HTTP, from real web processes: clients that leave, clients that take nothing, servers that stop."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import Engine

from labctl.db import transaction
from labctl.remote import service
from labctl.remote.running import Taken
from labctl.remote.service import Wanted
from labctl.remote.states import Operation
from tests.acceptance.lab import free_port, until

from .web import add_hosts, add_user, claim, finish, piece, stream_of, write

PATIENCE = 40


class Web:
    """gunicorn over the database of the tests."""

    def __init__(self, home: Path, database_url: str, headers: dict[str, str], **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers = headers
        given = {"DATABASE_URL": database_url, "PORT": str(self.port), "HOME": str(home), **settings}
        self.log = home / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "python:labctl.gunicorn_config", "labctl.wsgi:app"],
                env={**os.environ, **{f"LABCTL_{name}": value for name, value in given.items()}},
                cwd=home,
                stderr=log,
                start_new_session=True,
            )

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return requests.get(f"{self.url}/_health", timeout=PATIENCE).status_code == 204
        except requests.RequestException:
            return False

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, headers=self.headers, timeout=PATIENCE, **options)

    def follow(self, taken: Taken) -> requests.Response:
        return self.get(f"/jobs/{taken.jid}?outputs=1&follow=1", stream=True)


@pytest.fixture
def headers(committed: Engine) -> dict[str, str]:
    with transaction() as session:
        add_hosts(session)
        return add_user(session)


@pytest.fixture
def web(tmp_path: Path, database_url: str, headers: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Web]:
    web = Web(tmp_path, database_url, headers, **getattr(request, "param", {}))
    try:
        until(web.healthy, "gunicorn answers")
        yield web
    finally:
        if web.process.poll() is None:
            os.killpg(web.process.pid, signal.SIGKILL)
            web.process.wait(PATIENCE)


def begin() -> Taken:
    with transaction() as session:
        service.submit(session, Wanted(Operation.PING, ["web1"]), asked_by="a", address=None, timeout=60)
    return claim()


def test_each_chunk_is_an_http_chunk_and_comes_at_once_from_every_process(web: Web) -> None:
    taken = begin()
    answers = [web.follow(taken) for _ in range(8)]
    parts = [answer.iter_content(None) for answer in answers]
    for part in parts:
        assert json.loads(next(part))["jid"] == taken.jid
    for number in range(5):
        write(taken, piece("web1", None, name=str(number)))
        for part in parts:
            assert json.loads(next(part)) == {"web1": {"status": 5, "name": str(number)}}
    finish(taken, piece("web1", name="last"))
    for answer, part in zip(answers, parts, strict=True):
        assert stream_of(b"".join(part).decode()) == [{"web1": {"status": 5, "name": "last"}}]
        # The connection is of use for the next request.
        assert "Connection" not in answer.headers or answer.headers["Connection"] != "close"


@pytest.mark.parametrize("web", [{"WEB_WORKERS": "1", "REMOTE_MAX_FOLLOWERS": "2"}], indirect=True)
def test_a_client_that_leaves_gives_its_place_back(web: Web) -> None:
    taken = begin()
    for _ in range(3):
        answers = [web.follow(taken) for _ in range(2)]
        refused = web.get(f"/jobs/{taken.jid}/events")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        for answer in answers:
            answer.close()

        def place(answers: list[requests.Response] = answers) -> bool:
            # Whoever writes to a client notices that it has left.
            write(taken, piece("web1", None))
            with web.follow(taken) as answer:
                return answer.status_code == 200

        until(place, "there is a place")

        def both() -> bool:
            write(taken, piece("web1", None))
            with web.follow(taken) as one, web.follow(taken) as other:
                return one.status_code == other.status_code == 200

        until(both, "there are two places")


@pytest.mark.parametrize("web", [{"WEB_WORKERS": "1", "REMOTE_MAX_FOLLOWERS": "2"}], indirect=True)
def test_a_client_that_leaves_while_nothing_comes_is_noticed_by_the_heartbeat(web: Web) -> None:
    taken = begin()
    for answer in [web.follow(taken) for _ in range(2)]:
        answer.close()

    def place() -> bool:
        with web.follow(taken) as answer:
            return answer.status_code == 200

    until(place, "there is a place")


@pytest.mark.parametrize("web", [{"WEB_WORKERS": "1"}], indirect=True)
def test_a_client_that_takes_nothing_holds_up_nobody(web: Web) -> None:
    taken = begin()
    with socket.create_connection(("127.0.0.1", web.port)) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        token = web.headers["X-AUTH-TOKEN"]
        lazy.sendall(f"GET /jobs/{taken.jid}?follow=1 HTTP/1.1\r\nHost: x\r\nX-AUTH-TOKEN: {token}\r\n\r\n".encode())
        assert lazy.recv(1).startswith(b"H")
        answer = web.follow(taken)
        parts = answer.iter_content(None)
        next(parts)
        for number in range(40):
            write(taken, piece("web1", None, name=str(number), pad="x" * 200_000))
            got = b""
            while not got.endswith(b'"}}'):
                got += next(parts)
            assert json.loads(got)["web1"]["name"] == str(number)
    finish(taken)
    assert b"".join(parts) == b""


def test_a_server_that_stops_breaks_streams_off_at_once_and_without_an_end(web: Web) -> None:
    taken = begin()
    answers = [web.follow(taken) for _ in range(6)]
    web.process.send_signal(signal.SIGTERM)
    for answer in answers:
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            _ = answer.content
    # Those who follow do not use up the 30 seconds that requests have to end.
    assert web.process.wait(25) == 0
    assert "Traceback" not in web.log.read_text()
