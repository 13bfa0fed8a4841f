"""Servers of the web that sessions download from and projects are told at: good ones, and such as there are as well."""

import hashlib
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

CONTENT = b"software" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "files.example.com"


def make_certificate(directory: Path, *names: str) -> Path:
    """Make a certificate with its key and the CA that has signed it in one file."""
    authority = trustme.CA()
    issued = authority.issue_cert(*names)
    both = directory / "both.pem"
    parts = [issued.private_key_pem, *issued.cert_chain_pems, authority.cert_pem]
    both.write_bytes(b"".join(part.bytes() for part in parts))
    return both


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    #: The address of this machine at which it was asked.
    address: str


@dataclass
class Answer:
    """What is answered at a path; ``then`` goes on with the connection."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    #: What Content-Length says; None: the truth; empty: there is none.
    length: str | None = None
    then: Callable[["Web", Any], None] | None = None

    @property
    def head(self) -> bytes:
        length = str(len(self.body)) if self.length is None else self.length
        headers = {**self.headers, **({"Content-Length": length} if length else {})}
        lines = [f"HTTP/1.1 {self.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode()


class Web(socketserver.ThreadingTCPServer):
    """A server at every address of this machine, with TLS or without."""

    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, certificate: Path | None) -> None:
        super().__init__(("", 0), _Asked)
        self.port: int = self.server_address[1]
        self.tls = None
        self.names: list[str | None] = []
        if certificate is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)
            self.tls.sni_callback = lambda connection, name, context: self.names.append(name)
        self.answers: dict[str, Answer] = {"/SW1.tar.gz": Answer(body=CONTENT)}
        self.requests: list[Request] = []
        #: Says nothing before TLS.
        self.mute = False
        #: Somebody waits.
        self.waited_for = threading.Event()
        self.gate = threading.Event()
        self.closing = threading.Event()

    def url(self, path: str = "/SW1.tar.gz", host: str = "127.0.0.1") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    def get_request(self) -> Any:
        connection, address = super().get_request()
        connection.settimeout(60)
        return connection, address


class _Asked(socketserver.BaseRequestHandler):
    server: Web

    def handle(self) -> None:
        with suppress(OSError):
            address = self.request.getsockname()[0]
            if self.server.mute:
                self.server.waited_for.set()
                self.server.closing.wait(60)
                return
            if self.server.tls is None:
                self.answer(self.request, address)
                return
            with self.server.tls.wrap_socket(self.request, server_side=True) as connection:
                self.answer(connection, address)

    def answer(self, connection: Any, address: str) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            some = connection.recv(4096)
            if not some:
                return
            received += some
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(4096)
        method, path, _ = first.split(" ")
        self.server.requests.append(Request(method, path, headers, body, address))
        answer = self.server.answers.get(path.partition("?")[0], Answer(404))
        connection.sendall(answer.head + answer.body)
        if answer.then is not None:
            answer.then(self.server, connection)


def hangs(server: Web, connection: Any) -> None:
    """Says nothing more."""
    server.waited_for.set()
    server.closing.wait(60)


def drips(server: Web, connection: Any) -> None:
    """Says more and more, slowly, for ever."""
    server.waited_for.set()
    while not server.closing.wait(0.02):
        connection.sendall(b"x")


def waits(server: Web, connection: Any) -> None:
    """Says the rest when the gate is opened."""
    server.waited_for.set()
    server.gate.wait(60)
    connection.sendall(CONTENT)


def redirect(url: str, status: int = 302) -> Answer:
    return Answer(status, {"Location": url})


@contextmanager
def running(certificate: Path | None = None) -> Iterator[Web]:
    """Run a server; afterwards its port is closed and all of its connections have ended."""
    with Web(certificate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.gate.set()
            server.shutdown()
            thread.join()
