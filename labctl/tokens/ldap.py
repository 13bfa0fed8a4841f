"""Asking LDAP whether a password is right; it knows no database."""

import logging
import secrets
import socket
import ssl
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from labctl.errors import Unavailable

with warnings.catch_warnings():
    # It asks pyasn1 for names that are called old there.
    warnings.simplefilter("ignore", DeprecationWarning)
    import ldap3  # type: ignore[import-untyped]
    from ldap3.core.exceptions import LDAPException  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

#: Logins that ask LDAP at once in one process: a slow server must not keep every thread.
PLACES = 8
_SUCCESS = 0
_SIZE_LIMIT = 4
#: What a server says of a wrong password, an unknown user, and one who may not log in: invalidCredentials, and
#: constraintViolation, noSuchObject, invalidDNSyntax, inappropriateAuthentication, insufficientAccessRights,
#: unwillingToPerform.
_REFUSED = frozenset((49, 19, 32, 34, 48, 50, 53))


class Failed(Exception):
    """A server could not say whether the password is right; the text says why, for the log."""


@dataclass(frozen=True, kw_only=True)
class Directory:
    """An LDAP service; several servers stand for each other.

    A user is searched for below ``base``, as ``bind_dn`` or as nobody, and then binds with the password; or binds as
    ``user_dn`` without a search.
    """

    urls: list[str]
    start_tls: bool = True
    ca_file: str = ""
    #: Seconds that each server has for all of its answers.
    timeout: int = 5
    base: str = ""
    attribute: str = "uid"
    filter: str = ""
    bind_dn: str = ""
    bind_password: str = field(default="", repr=False)
    user_dn: str = ""
    _tls: Any = field(init=False, repr=False)
    _places: threading.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the CA's certificates, once; raises OSError (ssl.SSLError) if that fails."""
        object.__setattr__(self, "_tls", _Verified(ssl.create_default_context(cafile=self.ca_file or None)))
        object.__setattr__(self, "_places", threading.BoundedSemaphore(PLACES))

    def user(self, name: str, password: str) -> str | None:
        """Give the name of the user, as the directory spells it, if the password is theirs.

        Raises :class:`Unavailable` if no server can tell.
        """
        # A bind with an empty password is one as nobody, and succeeds.
        if not password or "\0" in password or not name.isprintable() or not folded(name):
            return None
        if not self._places.acquire(timeout=1):
            raise Unavailable("too many users log in at once", retry_after=1)
        try:
            for url in self.urls:
                try:
                    return self._ask(url, name, password)
                # An answer that is none breaks the library in any way.
                except Exception as error:
                    log.warning("ldap_failed", extra={"url": url, "reason": f"{type(error).__name__}: {error}"})
        finally:
            self._places.release()
        raise Unavailable("LDAP, which knows the passwords, cannot be asked at the moment")

    def troubles(self) -> dict[str, str | None]:
        """Say of each server why it cannot be asked now, None if it can: connect, and log in as who searches."""
        return {url: self._trouble(url) for url in self.urls}

    def _trouble(self, url: str) -> str | None:
        try:
            with self._connection(url) as connection:
                if self.bind_dn and _bind(connection, self.bind_dn, self.bind_password) != _SUCCESS:
                    return f"bind_dn was refused: {connection.result['description']}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _ask(self, url: str, name: str, password: str) -> str | None:
        with self._connection(url) as connection:
            if self.user_dn:
                own_name: str | None = folded(name)
                dn = self.user_dn.replace("{user}", escaped(folded(name)))
            else:
                found = self._search(connection, name)
                # Who is not there is asked for as well, so that the answer takes about as long.
                own_name, dn = found or (None, f"{self.attribute}={secrets.token_hex()},{self.base}")
            code = _bind(connection, dn, password)
            if code != _SUCCESS and code not in _REFUSED:
                raise Failed(f"the bind of a user failed: {connection.result['description']}")
            return own_name if code == _SUCCESS else None

    def _search(self, connection: Any, name: str) -> tuple[str, str] | None:
        """Find the one user of this name: how the directory spells it, and the DN."""
        if self.bind_dn and _bind(connection, self.bind_dn, self.bind_password) != _SUCCESS:
            raise Failed(f"bind_dn was refused: {connection.result['description']}")
        connection.search(
            self.base, f"(&({self.attribute}={escaped(name)}){self.filter})", attributes=[self.attribute], size_limit=2
        )
        if (code := connection.result["result"]) not in (_SUCCESS, _SIZE_LIMIT):
            raise Failed(f"the search failed: {connection.result['description']}")
        found = [each for each in connection.response or () if each["type"] == "searchResEntry"]
        if len(found) != 1 or code == _SIZE_LIMIT:
            if found:
                log.warning("ldap_ambiguous", extra={"user": name})
            return None
        values = [value.decode(errors="replace") for value in found[0]["raw_attributes"].get(self.attribute, ())]
        own_name = next((value for value in values if folded(value) == folded(name)), None)
        if own_name is None or not found[0]["dn"]:
            raise Failed(f"the server does not show the {self.attribute} of a user")
        return own_name, found[0]["dn"]

    @contextmanager
    def _connection(self, url: str) -> Iterator[Any]:
        parts = urlsplit(url)
        server = ldap3.Server(
            parts.hostname,
            parts.port or (636 if parts.scheme == "ldaps" else 389),
            use_ssl=parts.scheme == "ldaps",
            tls=self._tls,
            get_info=ldap3.NONE,
            connect_timeout=self.timeout,
        )
        connection = ldap3.Connection(
            server,
            authentication=ldap3.ANONYMOUS,
            auto_referrals=False,
            check_names=False,
            receive_timeout=self.timeout,
        )
        try:
            with _hung_up_after(self.timeout, connection):
                connection.open(read_server_info=False)
                if parts.scheme == "ldap" and self.start_tls and not connection.start_tls(read_server_info=False):
                    raise Failed("the server does not speak TLS")
                yield connection
        finally:
            with suppress(LDAPException, OSError):
                connection.unbind()
            # Where it could not connect, it forgets to.
            if connection.socket is not None:
                connection.socket.close()


class _Verified(ldap3.Tls):
    """TLS as the standard library does it: ldap3 would compare the host's name itself, and knows no IP addresses."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self.context = context

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Shake hands with the server, which must be who its certificate says."""
        connection.socket = self.context.wrap_socket(connection.socket, server_hostname=connection.server.host)


def _bind(connection: Any, dn: str, password: str) -> int:
    """Bind and give the result's code."""
    connection.user, connection.authentication = dn, ldap3.SIMPLE
    # As bytes: ldap3 would normalize a text, and what is left of it may be empty.
    connection.password = password.encode()
    connection.bind(read_server_info=False)
    return int(connection.result["result"])


@contextmanager
def _hung_up_after(seconds: float, connection: Any) -> Iterator[None]:
    """Hang the connection up when the time is over: its own timeouts begin anew with each byte."""
    done = threading.Event()

    def watch() -> None:
        left = seconds
        while not done.wait(left):
            # Not the socket's own method: that of TLS forgets its state, which another thread is using.
            with suppress(OSError, TypeError):
                socket.socket.shutdown(connection.socket, socket.SHUT_RDWR)
            left = 0.1

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def folded(name: str) -> str:
    """Give one spelling to names that a directory takes for the same."""
    return " ".join(unicodedata.normalize("NFKC", name).lower().split())


def escaped(name: str) -> str:
    r"""Write a name for a filter and for a DN: both know ``\`` and two hexadecimal digits for any byte."""
    return "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "._-") else _hexadecimal(letter)
        for letter in name
    )


def _hexadecimal(letter: str) -> str:
    return "".join(f"\\{byte:02x}" for byte in letter.encode())
