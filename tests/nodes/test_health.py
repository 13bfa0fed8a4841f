"""Asking nodes how they are, over the network, and in how much time."""

import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labctl.nodes import health
from tests.acceptance.lab import until

from .servers import Storage, running

#: Seconds for what should take none, on a machine that is busy.
SOON = 5.0


def trouble(host: str, timeout: float = SOON, *, verify: bool = True) -> str | None:
    return health.check([host], timeout, verify=verify)[host]


@contextmanager
def within(most: float, least: float = 0.0) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < most


@pytest.mark.parametrize("behaviour", ["well", "well, with no content", "well, with an endless body"])
def test_a_node_that_answers_2xx_is_well_whatever_the_body(storage: Storage, behaviour: str) -> None:
    with within(SOON):
        assert trouble(storage.host(1, behaviour)) is None


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("failing", "it answered 500"),
        ("redirecting", "it answered 302"),
        ("no HTTP", "Error"),
        ("endless headers", "Error"),
        ("without TLS", "SSL"),
        ("hanging up", "End"),
    ],
)
def test_a_node_that_answers_anything_else_is_not(storage: Storage, behaviour: str, reason: str) -> None:
    with within(SOON):
        said = trouble(storage.host(1, behaviour))
    assert said is not None
    assert reason in said
    assert 5 < len(said) <= 300


@pytest.mark.parametrize("behaviour", ["silent", "silent after TLS", "dripping"])
def test_a_node_that_takes_its_time_is_not_waited_for(storage: Storage, behaviour: str) -> None:
    with within(SOON, least=0.5):
        assert (trouble(storage.host(1, behaviour), 0.5) or "").startswith("no answer within 0.")


def test_a_node_that_is_not_there_is_not_well(storage: Storage, certificate: Path) -> None:
    with running(certificate) as gone:
        pass
    with within(SOON):
        assert "ConnectionRefusedError" in (trouble(gone.host(1)) or "")
        # Both addresses of the name refuse.
        assert "ConnectionRefusedError" in (trouble(f"localhost:{gone.port}") or "")
        assert "gaierror" in (trouble("nosuch.invalid") or "")


def test_what_is_asked_is_get_health_of_that_host_and_nothing_more(storage: Storage) -> None:
    host = storage.host(7)
    assert trouble(host) is None
    (request,) = storage.requests
    first, *headers = request.decode().split("\r\n")
    assert first == "GET /health/ HTTP/1.1"
    assert f"Host: {host}" in headers
    assert any(header.startswith("User-Agent: labctl/") for header in headers)
    assert not any(header.lower().startswith(("authorization", "cookie")) for header in headers)


def test_names_and_ipv6_addresses_are_asked_as_well(storage: Storage, certificate: Path) -> None:
    assert trouble(f"localhost:{storage.port}") is None
    with running(certificate, address="::1") as sixth:
        assert trouble(f"[::1]:{sixth.port}") is None


def test_a_proxy_of_the_environment_is_not_asked(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert trouble(storage.host(1)) is None


def test_a_certificate_that_nobody_vouches_for_is_good_without_verification_only(strangers_certificate: Path) -> None:
    with running(strangers_certificate) as stranger:
        assert "certificate verify failed" in (trouble(stranger.host(1)) or "")
        assert trouble(stranger.host(1), verify=False) is None


def test_a_certificate_for_another_host_is_good_without_verification_only(storage: Storage) -> None:
    other = f"127.0.0.200:{storage.port}"
    assert "certificate" in (trouble(other) or "")
    assert trouble(other, verify=False) is None


def test_many_nodes_are_asked_at_once(storage: Storage, certificate: Path) -> None:
    well, silent, failing = (
        storage.hosts(range(1, 11)),
        storage.hosts(range(11, 41), "silent"),
        storage.hosts(range(41, 51), "failing"),
    )
    with within(2 + SOON, least=2):
        troubles = health.check([*silent, *failing, *well], 2, verify=True)
    assert {host for host, reason in troubles.items() if reason is None} == set(well)
    assert {troubles[host] for host in failing} == {"it answered 500"}
    assert all((troubles[host] or "").startswith("no answer within 2.") for host in silent)


def test_more_nodes_than_are_asked_at_once_are_all_asked(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "AT_ONCE", 4)
    hosts = storage.hosts(range(1, 11))
    assert health.check(hosts, SOON, verify=True) == dict.fromkeys(hosts)
    assert health.check([], SOON, verify=True) == {}


@pytest.fixture
def hanging_names() -> Iterator[list[str]]:
    """Names that a name server never says anything about; they are resolved by a system call, in a thread."""
    asked: list[str] = []
    gate = threading.Event()
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name.endswith(".hangs"):
            asked.append(name)
            gate.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return resolve(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield asked
        gate.set()


def test_names_that_cannot_be_resolved_hold_up_nobody_else(storage: Storage, hanging_names: list[str]) -> None:
    hanging = [f"node{number}.hangs" for number in range(40)]
    healthy = f"localhost:{storage.port}"
    with within(2 + SOON, least=2):
        troubles = health.check([*hanging, healthy], 2, verify=True)
    assert len(hanging_names) == 40
    assert troubles.pop(healthy) is None
    assert all((trouble or "").startswith("no answer within 2.") for trouble in troubles.values())


def test_nothing_is_left_open_by_checks_that_were_called_off() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as never_accepts:
        hosts = [f"127.0.0.1:{never_accepts.getsockname()[1]}", f"localhost:{never_accepts.getsockname()[1]}"]
        before = os.listdir("/proc/self/fd")
        # Without the help of the garbage collector.
        gc.disable()
        try:
            troubles = health.check(hosts, 0.3, verify=True)
            after = os.listdir("/proc/self/fd")
        finally:
            gc.enable()
    assert all((trouble or "").startswith("no answer within ") for trouble in troubles.values())
    assert len(after) == len(before)


def test_a_failure_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        health.log_failed({"a": None, "b": "it answered 500"})
    (line,) = caplog.records
    assert (line.getMessage(), line.__dict__["host"], line.__dict__["reason"]) == (
        "node_check_failed",
        "b",
        "it answered 500",
    )


# Searching


class Pool:
    """Nodes in the order of their turns, as somebody may claim them; notes how many were wanted and claimed."""

    def __init__(self, hosts: list[str]) -> None:
        self.left = list(hosts)
        self.claims: list[list[str]] = []
        self.wanted: list[int] = []

    def __call__(self, count: int) -> list[str]:
        taken, self.left = self.left[:count], self.left[count:]
        self.claims.append(taken)
        self.wanted.append(count)
        return taken


def test_a_node_that_is_well_is_found_by_asking_it_alone(storage: Storage) -> None:
    pool = Pool(storage.hosts(range(1, 9)))
    found = health.search(pool, SOON, verify=True)
    assert found == health.Search(storage.host(1), {})
    assert pool.wanted == [1]
    assert sum(storage.asked.values()) == 1


def test_after_failures_more_are_asked_at_once(storage: Storage) -> None:
    failing = storage.hosts(range(1, 6), "failing")
    pool = Pool([*failing, *storage.hosts(range(6, 30))])
    with within(SOON):
        found = health.search(pool, 60, verify=True)
    assert found.healthy in pool.claims[2]
    assert pool.wanted == [1, 2, 4]
    assert set(failing[:3]) <= found.failed.keys() <= set(failing)
    assert set(found.failed.values()) == {"it answered 500"}


def test_a_slow_node_is_not_waited_for_when_another_answers(storage: Storage) -> None:
    pool = Pool([storage.host(1, "slow"), *storage.hosts(range(2, 9))])
    with within(8, least=1):
        found = health.search(pool, 8, verify=True)
    assert found.healthy in storage.hosts(range(2, 4))
    assert pool.wanted == [1, 2]
    # It may be slow, but it has not failed.
    assert found.failed == {}


def test_a_slow_node_is_waited_for_when_there_is_no_other(storage: Storage) -> None:
    slow, *failing = hosts = [storage.host(1, "slow"), *storage.hosts(range(2, 4), "failing")]
    pool = Pool(hosts)

    def claim(count: int) -> list[str]:
        taken = pool(count)
        if not taken:
            storage.gate.set()
        return taken

    found = health.search(claim, 4, verify=True)
    assert found == health.Search(slow, dict.fromkeys(failing, "it answered 500"))


def test_one_of_forty_silent_nodes_costs_less_than_the_timeout_of_one(storage: Storage) -> None:
    silent = storage.hosts(range(10, 50), "silent")
    pool = Pool([*silent, storage.host(99)])
    with within(4):
        found = health.search(pool, 4, verify=True)
    assert found.healthy == storage.host(99)
    assert pool.wanted == [1, 2, 4, 8, 16, 32]
    # Those that were silent for half a timeout have failed; the others have not had a chance.
    assert {*pool.claims[0]} <= found.failed.keys() <= {*pool.claims[0], *pool.claims[1]}


def test_among_silent_nodes_only_the_search_ends_with_the_timeout(storage: Storage) -> None:
    silent = storage.hosts(range(10, 25), "silent")
    pool = Pool(silent)
    with within(2 + SOON, least=2):
        found = health.search(pool, 2, verify=True)
    assert found.healthy is None
    assert found.failed.keys() == set(silent)
    assert pool.claims[-1] == []


def test_among_failing_nodes_only_the_search_ends_when_all_have_failed(storage: Storage) -> None:
    failing = storage.hosts(range(10, 30), "failing")
    with within(SOON):
        found = health.search(Pool(failing), 60, verify=True)
    assert found.healthy is None
    assert found.failed.keys() == set(failing)


def test_without_nodes_the_search_ends_at_once() -> None:
    with within(SOON):
        assert health.search(Pool([]), 60, verify=True) == health.Search(None, {})


def test_no_more_nodes_are_asked_at_once_than_allowed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "AT_ONCE", 5)
    pool = Pool(storage.hosts(range(10, 30), "silent"))
    with within(1 + SOON, least=1):
        assert health.search(pool, 1, verify=True).healthy is None
    assert pool.wanted == [1, 2, 2]
    failing = Pool([*storage.hosts(range(30, 50), "failing"), storage.host(1)])
    assert health.search(failing, 60, verify=True).healthy == storage.host(1)
    assert max(failing.wanted) == 5


def test_of_those_that_answer_at_once_the_first_in_turn_is_found(storage: Storage) -> None:
    hosts = [storage.host(1, "failing"), storage.host(2, "slow"), storage.host(3, "slow")]
    pool = Pool(hosts)

    def claim(count: int) -> list[str]:
        taken = pool(count)
        if not taken:
            # Both answer before anybody looks.
            storage.gate.set()
            until(lambda: len(storage.answered) == 3, "all have answered")
        return taken

    assert health.search(claim, 8, verify=True).healthy == hosts[1]


def test_an_error_of_who_claims_ends_the_search(storage: Storage) -> None:
    silent = storage.hosts(range(1, 4), "silent")

    def claim(count: int) -> list[str]:
        if count > 1:
            raise RuntimeError("the database is gone")
        return silent[:1]

    with pytest.raises(RuntimeError, match="is gone"), within(SOON):
        health.search(claim, 2, verify=True)


def test_searches_go_on_in_many_threads_at_once(storage: Storage, at_once: Callable[..., list[Any]]) -> None:
    hosts = storage.hosts(range(1, 17))
    found = at_once([lambda host=host: health.search(Pool([host]), 30, verify=True).healthy for host in hosts])
    assert found == hosts
