"""Fetching files and telling projects over HTTP: what works, what does not, and what must never be reached."""

import hashlib
import hmac
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labctl.maintenance import fetching
from labctl.maintenance.fetching import Failed, File, Unwanted

from .web import CONTENT, NAME, SHA256, Answer, Web, drips, hangs, make_certificate, redirect, running

#: Seconds for what should take none, on a machine that is busy.
SOON = 5.0
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"), "127.0.0.1", NAME)


@pytest.fixture
def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the certificate be one that this machine trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    fetching.trusted.cache_clear()
    yield
    fetching.trusted.cache_clear()


@pytest.fixture
def web() -> Iterator[Web]:
    with running() as server:
        yield server


@pytest.fixture
def secure(certificate: Path, trust: None) -> Iterator[Web]:
    with running(certificate) as server:
        yield server


@pytest.fixture
def get(tmp_path: Path) -> Callable[..., File]:
    """Fetch into a directory; it may come from this machine unless a test says otherwise."""

    def get(url: str, **options: Any) -> File:
        return fetching.download(url, tmp_path / "files", **{"limit": LIMIT, "private": True, **options})

    return get


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter[str]]:
    """Let names have addresses, each time the next of them; counts how often each name was resolved."""
    resolve = socket.getaddrinfo

    def give(known: Mapping[str, Sequence[Sequence[str]]]) -> Counter[str]:
        asked: Counter[str] = Counter()

        def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
            name = host.decode() if isinstance(host, bytes) else host
            asked[name] += 1
            if name not in known:
                return resolve(host, port, *arguments, **options)
            addresses = known[name][min(asked[name], len(known[name])) - 1]
            kinds = [(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in addresses]
            return [(kind, socket.SOCK_STREAM, 6, "", (each, port)) for kind, each in kinds]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return give


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let some addresses of this machine count as public."""

    def say(*addresses: str) -> None:
        really = fetching.is_public
        monkeypatch.setattr(fetching, "is_public", lambda address: address in addresses or really(address))

    return say


def left_in(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").rglob("*"))


@contextmanager
def within(most: float, least: float = 0.0) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < most


# Files


def test_a_file_is_fetched_whole_and_nothing_else_is_left(web: Web, get: Callable[..., File], tmp_path: Path) -> None:
    file = get(web.url())
    assert (file.path, file.size, file.sha256) == (tmp_path / "files" / "SW1.tar.gz", len(CONTENT), SHA256)
    assert file.path.read_bytes() == CONTENT
    assert left_in(tmp_path) == ["SW1.tar.gz"]


def test_a_file_comes_over_tls_from_a_server_whose_certificate_is_trusted(
    secure: Web, get: Callable[..., File]
) -> None:
    assert get(secure.url()).path.read_bytes() == CONTENT


def test_a_certificate_of_a_name_is_checked_for_the_name_while_the_address_is_connected_to(
    secure: Web, get: Callable[..., File], names: Callable[..., Counter[str]]
) -> None:
    asked = names({NAME: [["127.0.0.1"]]})
    assert get(secure.url(host=NAME)).sha256 == SHA256
    assert secure.names == [NAME]
    assert secure.requests[0].headers["host"] == f"{NAME}:{secure.port}"
    assert asked[NAME] == 1


def test_a_certificate_of_another_name_is_refused(
    secure: Web, get: Callable[..., File], names: Callable[..., Counter[str]], tmp_path: Path
) -> None:
    names({"other.example.com": [["127.0.0.1"]]})
    with pytest.raises(Failed, match=r"certificate is not valid for 'other\.example\.com'") as caught:
        get(secure.url(host="other.example.com"))
    assert not caught.value.passing
    assert secure.requests == [] and left_in(tmp_path) == []


def test_a_certificate_that_nobody_trusts_is_refused(
    certificate: Path, get: Callable[..., File], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    fetching.trusted.cache_clear()
    with running(certificate) as server, pytest.raises(Failed, match="CERTIFICATE_VERIFY_FAILED") as caught:
        get(server.url())
    fetching.trusted.cache_clear()
    assert not caught.value.passing


def test_a_checksum_is_that_of_the_file_or_there_is_none(web: Web, get: Callable[..., File], tmp_path: Path) -> None:
    assert get(f"{web.url()}#sha256={SHA256.upper()}").sha256 == SHA256
    (tmp_path / "files" / "SW1.tar.gz").unlink()
    for wrong in (lambda: get(f"{web.url()}#sha256={'0' * 64}"), lambda: get(web.url(), sha256="0" * 64)):
        with pytest.raises(Failed, match=f"its sha256 is {SHA256}, not 0000") as caught:
            wrong()
        assert not caught.value.passing
    assert left_in(tmp_path) == []
    assert {request.path for request in web.requests} == {"/SW1.tar.gz"}


@pytest.mark.parametrize("length", [None, "", "1"], ids=["announced", "with no length", "announced as less"])
def test_a_file_that_is_too_large_is_refused(
    web: Web, get: Callable[..., File], tmp_path: Path, length: str | None
) -> None:
    web.answers["/SW1.tar.gz"] = Answer(body=CONTENT, length=length)
    if length == "1":
        # More than was announced is not a part of it.
        assert get(web.url(), limit=len(CONTENT) - 1).size == 1
        return
    with pytest.raises(Failed, match=f"larger than {len(CONTENT) - 1} bytes") as caught:
        get(web.url(), limit=len(CONTENT) - 1)
    assert not caught.value.passing
    assert left_in(tmp_path) == []
    assert get(web.url(), limit=len(CONTENT)).size == len(CONTENT)


def test_a_file_without_end_is_refused_when_it_is_too_large(web: Web, get: Callable[..., File]) -> None:
    def pours(server: Web, connection: Any) -> None:
        while not server.closing.is_set():
            connection.sendall(CONTENT)

    web.answers["/SW1.tar.gz"] = Answer(length="", then=pours)
    with within(SOON), pytest.raises(Failed, match="larger"):
        get(web.url())


def test_what_the_server_has_packed_stays_packed(web: Web, get: Callable[..., File]) -> None:
    web.answers["/SW1.tar.gz"] = Answer(body=b"\x1f\x8bpacked", headers={"Content-Encoding": "gzip"})
    assert get(web.url()).path.read_bytes() == b"\x1f\x8bpacked"
    assert web.requests[0].headers["accept-encoding"] == "identity"


def test_a_file_that_breaks_off_is_none_and_may_come_later(web: Web, get: Callable[..., File], tmp_path: Path) -> None:
    web.answers["/SW1.tar.gz"] = Answer(body=CONTENT[:-1], length=str(len(CONTENT)))
    with pytest.raises(Failed, match="closed") as caught:
        get(web.url())
    assert caught.value.passing
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("then", [hangs, drips])
def test_a_file_that_does_not_come_to_its_end_is_given_up(
    web: Web, get: Callable[..., File], tmp_path: Path, then: Any
) -> None:
    web.answers["/SW1.tar.gz"] = Answer(body=b"x", length="1000000", then=then)
    with within(SOON, 0.5), pytest.raises(Failed, match=r"longer than 0\.5 s") as caught:
        get(web.url(), longest=0.5)
    assert caught.value.passing
    assert left_in(tmp_path) == []


def test_a_server_that_says_nothing_is_given_up(
    secure: Web, get: Callable[..., File], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.3)
    secure.mute = True
    with within(SOON), pytest.raises(Failed, match=r"no answer within 0\.3 s") as caught:
        get(secure.url())
    assert caught.value.passing


def test_what_nobody_wants_any_more_is_given_up_soon(web: Web, get: Callable[..., File], tmp_path: Path) -> None:
    web.answers["/SW1.tar.gz"] = Answer(body=b"x", length="1000000", then=hangs)
    unwanted = threading.Event()
    timer = threading.Timer(0.2, unwanted.set)
    timer.start()
    with within(SOON), pytest.raises(Unwanted):
        get(web.url(), unwanted=unwanted)
    timer.join()
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "passing"),
    [(500, True), (503, True), (429, True), (404, False), (403, False), (304, False)],
)
def test_an_answer_that_is_no_file_is_told_and_may_pass_or_not(
    web: Web, get: Callable[..., File], status: int, passing: bool
) -> None:
    web.answers["/SW1.tar.gz"] = Answer(status)
    with pytest.raises(Failed, match=f"the server answered {status}") as caught:
        get(web.url())
    assert caught.value.passing == passing


def test_where_nobody_listens_there_is_no_file_yet(get: Callable[..., File]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Failed) as caught:
            get(f"http://127.0.0.1:{taken.getsockname()[1]}/x")
    assert caught.value.passing and len(str(caught.value)) > 10


def test_a_name_without_an_address_is_told(get: Callable[..., File], names: Callable[..., Any]) -> None:
    names({NAME: [[]]})
    with pytest.raises(Failed, match=f"{NAME} has no address") as caught:
        get(f"http://{NAME}/x")
    assert caught.value.passing


def test_the_next_address_of_a_name_is_taken_when_one_is_silent(
    web: Web, get: Callable[..., File], names: Callable[..., Any]
) -> None:
    names({NAME: [["::1", "127.0.0.1"]]})
    assert get(web.url(host=NAME)).size == len(CONTENT)


# Redirects


def test_redirects_are_followed_five_times(web: Web, get: Callable[..., File], tmp_path: Path) -> None:
    web.answers |= {f"/{number}": redirect(f"/{number + 1}") for number in range(1, 6)}
    web.answers["/6"] = web.answers["/SW1.tar.gz"]
    # It is called as it was asked for.
    assert get(web.url("/2")).path.name == "2"
    assert get(web.url("/1")).size == len(CONTENT)
    web.answers["/0"] = redirect("/1")
    with pytest.raises(Failed, match="more than 5 times"):
        get(web.url("/0"))


@pytest.mark.parametrize("there", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://me:pass@127.0.0.1/"])
def test_a_redirect_goes_nowhere_but_to_the_web(web: Web, get: Callable[..., File], there: str) -> None:
    web.answers["/SW1.tar.gz"] = redirect(there)
    with pytest.raises(Failed, match="redirected to what is not a URL"):
        get(web.url())


def test_a_redirect_from_tls_to_plain_text_is_refused(web: Web, secure: Web, get: Callable[..., File]) -> None:
    secure.answers["/SW1.tar.gz"] = redirect(web.url())
    with pytest.raises(Failed, match="from https to http"):
        get(secure.url())
    assert web.requests == []


# What only this machine can reach

PRIVATE = [
    *("0.0.0.0", "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1"),
    *("::", "::1", "fe80::1", "fe80::1%lo", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2001:0:1:2:3:4:80ff:fffe"),
]
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_known(address: str) -> None:
    assert not fetching.is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public_are_known(address: str) -> None:
    assert fetching.is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0", "[::1]", "[::ffff:7f00:1]"]
)
def test_this_machine_is_not_reached_in_whatever_way_it_is_written(
    web: Web, get: Callable[..., File], host: str
) -> None:
    with pytest.raises(Failed, match=r"is not a public address .*maintenance_private_urls is not set") as caught:
        get(web.url(host=host), private=False)
    assert not caught.value.passing
    with pytest.raises(Failed, match="is not a public address"):
        fetching.send(web.url(host=host), b"{}", "secret", "1")
    assert web.requests == []


def test_a_name_with_one_address_that_is_not_public_is_refused(
    web: Web, get: Callable[..., File], names: Callable[..., Any], public: Callable[..., None]
) -> None:
    public("127.0.0.1")
    names({NAME: [["127.0.0.1", "10.0.0.1"]]})
    with pytest.raises(Failed, match=r"is not a public address \(10\.0\.0\.1\)"):
        get(web.url(host=NAME), private=False)
    assert web.requests == []


def test_a_name_that_changes_its_address_is_asked_where_it_was_looked_at(
    web: Web, get: Callable[..., File], names: Callable[..., Counter[str]], public: Callable[..., None]
) -> None:
    public("127.0.0.1")
    asked = names({NAME: [["127.0.0.1"], ["127.0.0.2"]]})
    assert get(web.url(host=NAME), private=False).size == len(CONTENT)
    assert [request.address for request in web.requests] == ["127.0.0.1"]
    assert asked == {NAME: 1}


@pytest.mark.parametrize("there", ["http://127.0.0.2:{port}/SW1.tar.gz", "//127.0.0.2:{port}/SW1.tar.gz"])
def test_a_redirect_to_an_address_that_is_not_public_is_refused(
    web: Web, get: Callable[..., File], public: Callable[..., None], there: str
) -> None:
    public("127.0.0.1")
    web.answers["/go"] = redirect(there.format(port=web.port))
    with pytest.raises(Failed, match=r"127\.0\.0\.2 is not a public address"):
        get(web.url("/go"), private=False)
    assert [(request.path, request.address) for request in web.requests] == [("/go", "127.0.0.1")]


def test_a_redirect_to_the_same_name_is_looked_at_again(
    web: Web, get: Callable[..., File], names: Callable[..., Any], public: Callable[..., None]
) -> None:
    public("127.0.0.1")
    names({NAME: [["127.0.0.1"], ["127.0.0.2"]]})
    web.answers["/go"] = redirect("/SW1.tar.gz")
    with pytest.raises(Failed, match="not a public address"):
        get(web.url("/go", NAME), private=False)


def test_proxies_of_the_environment_are_not_asked(
    web: Web, get: Callable[..., File], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert get(web.url()).size == len(CONTENT)


# URLs and names


@pytest.mark.parametrize(
    ("url", "plain", "sha256"),
    [
        ("https://x.example/a?b=c", "https://x.example/a?b=c", None),
        (f"http://[::1]:80/a#sha256={'A' * 64}", "http://[::1]:80/a", "a" * 64),
    ],
)
def test_a_url_is_split_from_its_checksum(url: str, plain: str, sha256: str | None) -> None:
    assert fetching.split(url) == (plain, sha256)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "http://"),
        ("file:///etc/passwd", "http://"),
        ("HTTP//x", "http://"),
        ("http://", "host"),
        ("http:///x", "host"),
        ("http://x:y/", "URL"),
        ("http://x.example:99999/", "port"),
        ("http://x.example:0/", "port"),
        ("https://user@x.example/", "user"),
        ("https://:pass@x.example/", "password"),
        ("https://x.example/#md5=1", "sha256"),
        ("https://x.example/#sha256=12", "sha256"),
        ("https://x.example/a b", "spaces"),
        ("https://x.example/\r\nX-Evil: 1", "URL"),
        ("https://ex\u00e4mple.org/", "ASCII"),
    ],
)
def test_what_is_no_url_of_the_web_is_refused_and_told(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fetching.split(url)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/SW1.tar.gz", "SW1.tar.gz"),
        ("/a/SW1.tar.gz?token=x", "SW1.tar.gz"),
        ("/", "download"),
        ("", "download"),
        ("/a/..", "download"),
        ("/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "passwd"),
        ("/a%00b", "a_b"),
        ("/-rf", "rf"),
        ("/.bashrc", "bashrc"),
        ("/a;b$(id)'\".sh", "a_b_id_.sh"),
        ("/" + "x" * 300 + ".rpm", "x" * 96 + ".rpm"),
    ],
)
def test_the_name_of_a_file_is_safe_whatever_the_url(path: str, name: str) -> None:
    assert fetching.file_name(f"https://files.example.com{path}") == name


# Telling


def test_a_notice_is_posted_and_signed(web: Web) -> None:
    web.answers["/told"] = Answer(202)
    body = json.dumps({"state": "MAINTENANCE"}).encode()
    fetching.send(web.url("/told?x=1"), body, "s3cr3t", "17", private=True)
    (request,) = web.requests
    assert (request.method, request.path, request.body) == ("POST", "/told?x=1", body)
    stamp = request.headers["x-labctl-timestamp"]
    assert abs(int(stamp) - time.time()) < 60
    expected = hmac.new(b"s3cr3t", f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert request.headers["x-labctl-signature"] == f"sha256={expected}"
    assert request.headers["x-labctl-delivery"] == "17"
    assert request.headers["content-type"] == "application/json"
    assert "s3cr3t" not in str(request)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 500])
def test_only_2xx_is_told_and_no_redirect_is_followed(web: Web, status: int) -> None:
    web.answers["/told"] = Answer(status, {"Location": "/elsewhere"})
    with pytest.raises(Failed, match=f"answered {status}"):
        fetching.send(web.url("/told"), b"{}", "secret", "1", private=True)
    assert len(web.requests) == 1


def test_a_receiver_that_never_answers_is_given_up(web: Web) -> None:
    web.mute = True
    with within(SOON, 0.3), pytest.raises(Failed, match=r"longer than 0\.3 s"):
        fetching.send(web.url("/told"), b"{}", "secret", "1", private=True, seconds=0.3)


def test_the_answer_to_a_notice_is_not_read_to_its_end(web: Web) -> None:
    web.answers["/told"] = Answer(200, length="", then=drips)
    with within(SOON):
        fetching.send(web.url("/told"), b"{}", "secret", "1", private=True)
