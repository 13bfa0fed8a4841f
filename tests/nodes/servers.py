"""HTTPS servers that stand for storage nodes: healthy ones, and such as have each of the troubles that there are."""

import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trustme

#: The addresses that a certificate is good for, beside localhost; each of them is a node of its own.
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 100)]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def make_certificate(directory: Path) -> Path:
    """Make a certificate with its key and the CA that has signed it in one file."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "::1", *ADDRESSES)
    both = directory / "both.pem"
    parts = [issued.private_key_pem, *issued.cert_chain_pems, authority.cert_pem]
    both.write_bytes(b"".join(part.bytes() for part in parts))
    return both


class Storage(socketserver.ThreadingTCPServer):
    """A server at every address of this machine, so that one port makes many nodes; each has a behaviour."""

    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, certificate: Path, port: int = 0, address: str = "") -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Asked)
        self.port: int = self.server_address[1]
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate)
        #: What each address does, if not "well".
        self.behaviour: dict[str, str] = {}
        #: How often each address was asked, and what for.
        self.asked: Counter[str] = Counter()
        self.requests: list[bytes] = []
        self.answered: list[str] = []
        #: Somebody waits for the answer of a slow one.
        self.waited_for = threading.Event()
        #: Lets slow ones answer.
        self.gate = threading.Event()
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def host(self, number: int, behaviour: str = "well") -> str:
        """Give the host of a node, which from now on behaves like this."""
        address = f"127.0.0.{number}"
        self.behaviour[address] = behaviour
        return f"{address}:{self.port}"

    def hosts(self, numbers: range, behaviour: str = "well") -> list[str]:
        return [self.host(number, behaviour) for number in numbers]

    def count(self, address: str) -> None:
        with self._lock:
            self.asked[address] += 1

    def times_asked(self, host: str) -> int:
        return self.asked[host.partition(":")[0]]

    def get_request(self) -> Any:
        connection, address = super().get_request()
        connection.settimeout(60)
        return connection, address


class _Asked(socketserver.BaseRequestHandler):
    server: Storage

    def handle(self) -> None:
        address = self.request.getsockname()[0]
        self.server.count(address)
        behaviour = self.server.behaviour.get(address, "well")
        with suppress(OSError):
            if behaviour in BEFORE_TLS:
                BEFORE_TLS[behaviour](self.server, self.request)
                return
            with self.server.tls.wrap_socket(self.request, server_side=True) as connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    some = connection.recv(4096)
                    if not some:
                        return
                    request += some
                self.server.requests.append(request)
                BEHAVIOURS[behaviour](self.server, connection)
                self.server.answered.append(address)


def _says(answer: bytes) -> Callable[[Storage, Any], None]:
    return lambda server, connection: connection.sendall(answer)


def _says_nothing(server: Storage, connection: Any) -> None:
    server.waited_for.set()
    server.closing.wait(60)


def _drips(beginning: bytes) -> Callable[[Storage, Any], None]:
    def drip(server: Storage, connection: Any) -> None:
        connection.sendall(beginning)
        while not server.closing.wait(0.02):
            connection.sendall(b"x")

    return drip


def _is_slow(server: Storage, connection: Any) -> None:
    server.waited_for.set()
    server.gate.wait(60)
    connection.sendall(OK)


BEFORE_TLS = {
    "silent": _says_nothing,
    "without TLS": _says(OK),
    "hanging up": _says(b""),
}
BEHAVIOURS = {
    "well": _says(OK),
    "well, with no content": _says(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "well, with an endless body": _drips(b"HTTP/1.1 200 OK\r\n\r\n"),
    "failing": _says(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"),
    "redirecting": _says(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere/\r\nContent-Length: 0\r\n\r\n"),
    "no HTTP": _says(b"220 mail.example.com ESMTP\r\n"),
    "endless headers": _drips(b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * 50_000),
    "dripping": _drips(b"HTTP/1.1 200 OK\r\nX-Slowly: "),
    "silent after TLS": _says_nothing,
    "slow": _is_slow,
}


@contextmanager
def running(certificate: Path, port: int = 0, address: str = "") -> Iterator[Storage]:
    """Run a server; afterwards its port is closed and all of its connections have ended."""
    with Storage(certificate, port, address) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.gate.set()
            server.shutdown()
            thread.join()
