"""Asking other hosts over HTTP: files for sessions, and notices for projects. It knows no database.

The URLs come from users. So that nobody reaches through them what only labctl's own host can reach, a name is resolved
once, every address it has must be a public one, and the connection goes to the very address that was looked at; each
redirect is a new URL, and looked at like the first.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import httpx

from labctl import __version__, asking

#: Seconds for a connection, and for the next bytes of an answer.
PATIENCE = 20.0
#: Seconds for one file altogether.
LONGEST = 6 * 3600.0
#: Seconds for telling a project something.
TELLING = 5.0
REDIRECTS = 5
CHUNK = 64 * 1024
#: Seconds between two looks at whether it is still wanted, and for which calling it off may take; it takes none.
WATCH, _GRACE = 0.25, 0.2
LONGEST_NAME = 100
#: What a server may say that can be another thing a little later; beside all of 5xx.
PASSING = (408, 425, 429)

_SHA256 = re.compile("[0-9a-fA-F]{64}")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Got = TypeVar("Got")


class Failed(Exception):
    """It did not work; the message is shown to people."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        """``passing``: it may work a little later."""
        super().__init__(message)
        self.passing = passing


class Unwanted(Exception):
    """It was given up because nobody wants it any more."""


@dataclass(frozen=True)
class File:
    """A file that was fetched."""

    path: Path
    size: int
    sha256: str


def split(url: str) -> tuple[str, str | None]:
    """Take the ``#sha256=...`` off a URL; raises ValueError that says what is wrong with either."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise ValueError("must be a URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("must begin with http:// or https://, and name a host")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ValueError("must have a port from 1 to 65535")
    if parsed.userinfo:
        raise ValueError("must not hold a user or a password")
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ValueError("must hold no spaces, control characters, or letters that are not ASCII")
    plain, _, fragment = url.partition("#")
    if not fragment:
        return plain, None
    key, _, digest = fragment.partition("=")
    if key != "sha256" or not _SHA256.fullmatch(digest):
        raise ValueError("may end with #sha256= and 64 hexadecimal digits, and with nothing else after a #")
    return plain, digest.lower()


def shown(url: str) -> str:
    """Give a URL for people and programs: what it asks may be as good as a password."""
    plain, asks, _ = url.partition("?")
    return f"{plain}?***" if asks else plain


def file_name(url: str) -> str:
    """Make the name of a file from a URL: safe in any directory, in a shell and in a list."""
    last = httpx.URL(url).path.rstrip("/").rpartition("/")[2]
    safe = re.sub("[^A-Za-z0-9._+-]+", "_", last).lstrip(".-")
    # The end tells what kind of file it is.
    return safe[-LONGEST_NAME:].lstrip(".-") or "download"


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Sign a notice, so that who gets it knows that labctl has sent it, and when."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={digest.hexdigest()}"


def download(
    url: str,
    directory: Path,
    *,
    limit: int,
    sha256: str | None = None,
    private: bool = False,
    unwanted: Event | None = None,
    longest: float = LONGEST,
) -> File:
    """Fetch a file into a directory that is made for it; until it is whole, it is there under another name.

    ``limit``: how many bytes it may have; ``private``: whether it may come from an address that is not public;
    ``unwanted``: says, once it is set, not to go on. Raises :class:`Failed` and :class:`Unwanted`.
    """
    try:
        plain, said = split(url)
    except ValueError as error:
        raise Failed(f"the URL {error}") from None
    wants = _Wants(limit, sha256 or said, private)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file_name(plain)
    part = directory / f".{path.name}.part"
    try:
        with part.open("wb") as file:
            size, digest = _run(_fetch(plain, file, wants), longest, unwanted)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise Failed(f"it cannot be kept: {error.strerror or error}", passing=True) from error
    finally:
        part.unlink(missing_ok=True)
    return File(path, size, digest)


def send(
    url: str,
    body: bytes,
    secret: str,
    delivery: str,
    *,
    private: bool = False,
    seconds: float = TELLING,
    unwanted: Event | None = None,
) -> None:
    """Post a notice; any 2xx is an answer that it was taken. Raises :class:`Failed` and :class:`Unwanted`."""
    try:
        split(url)
    except ValueError as error:
        raise Failed(f"the URL {error}") from None
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-Labctl-Delivery": delivery,
        "X-Labctl-Timestamp": timestamp,
        "X-Labctl-Signature": signature(secret, timestamp, body),
    }
    _run(_post(httpx.URL(url), body, headers, private), seconds, unwanted)


# What goes on in the event loop


@dataclass(frozen=True)
class _Wants:
    limit: int
    sha256: str | None
    private: bool


async def _fetch(url: str, file: Any, wants: _Wants) -> tuple[int, str]:
    here = httpx.URL(url)
    for _ in range(REDIRECTS + 1):
        async with _asked("GET", here, private=wants.private) as answer:
            if answer.has_redirect_location:
                here = _redirected(here, answer)
                continue
            if not answer.is_success or answer.status_code == 206:
                raise _answered(answer)
            return await _keep(answer, file, wants)
    raise Failed(f"it was redirected more than {REDIRECTS} times")


async def _keep(answer: httpx.Response, file: Any, wants: _Wants) -> tuple[int, str]:
    too_large = Failed(f"it is larger than {wants.limit} bytes")
    announced = answer.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > wants.limit:
        raise too_large
    size, digest = 0, hashlib.sha256()
    # As it comes: what the server has packed stays packed, and nothing grows while it is read.
    async for chunk in answer.aiter_raw(CHUNK):
        size += len(chunk)
        if size > wants.limit:
            raise too_large
        digest.update(chunk)
        file.write(chunk)
    if wants.sha256 and digest.hexdigest() != wants.sha256:
        raise Failed(f"its sha256 is {digest.hexdigest()}, not {wants.sha256}")
    return size, digest.hexdigest()


async def _post(url: httpx.URL, body: bytes, headers: Mapping[str, str], private: bool) -> None:
    async with _asked("POST", url, private=private, body=body, headers=headers) as answer:
        if not answer.is_success:
            raise _answered(answer)


def _answered(answer: httpx.Response) -> Failed:
    status = answer.status_code
    return Failed(f"the server answered {status}", passing=status >= 500 or status in PASSING)


def _redirected(here: httpx.URL, answer: httpx.Response) -> httpx.URL:
    try:
        there = here.join(answer.headers.get("location", ""))
        split(str(there.copy_with(fragment=None)))
    except (ValueError, httpx.InvalidURL):
        raise Failed("it was redirected to what is not a URL of http or https") from None
    if here.scheme == "https" and there.scheme != "https":
        raise Failed("it was redirected from https to http")
    return there


@asynccontextmanager
async def _asked(
    method: str, url: httpx.URL, *, private: bool, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.Response]:
    """Ask at the first address that lets itself be connected to."""
    addresses = await _addresses(url, private)
    async with httpx.AsyncClient(
        verify=trusted(),
        # No proxy of the environment: it would resolve the name once more.
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(PATIENCE),
        headers={"User-Agent": f"labctl/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
    ) as client:
        for number, address in enumerate(addresses, 1):
            request = client.build_request(
                method,
                url.copy_with(host=address, fragment=None),
                content=body,
                headers={**(headers or {}), "Host": url.netloc.decode("ascii")},
                # The certificate must be that of the name, not of the address.
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            )
            try:
                answer = await client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == len(addresses):
                    raise
                continue
            try:
                yield answer
            finally:
                await answer.aclose()
            return


async def _addresses(url: httpx.URL, private: bool) -> list[str]:
    """Resolve the host of a URL, once; raises :class:`Failed` unless all its addresses may be asked."""
    host = url.raw_host.decode("ascii")
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Failed(f"{host} has no address: {getattr(error, 'strerror', None) or error}", passing=True) from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses:
        raise Failed(f"{host} has no address", passing=True)
    if not private and (refused := [address for address in addresses if not is_public(address)]):
        raise Failed(f"{host} is not a public address ({', '.join(refused)}), and maintenance_private_urls is not set")
    return addresses


def is_public(address: str) -> bool:
    """Tell whether an address is one of the internet, and none that stands for another that is not."""
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            found = inner
        elif found.teredo or found.is_site_local or found.scope_id:
            return False
    not_one = found.is_multicast or found.is_reserved or found.is_unspecified or found.is_loopback
    return found.is_global and not (not_one or found.is_link_local or found.is_private)


@cache
def trusted() -> ssl.SSLContext:
    """Make what decides whose certificates are good: the CAs of this machine."""
    return ssl.create_default_context()


def _run(coroutine: Coroutine[Any, Any, Got], seconds: float, unwanted: Event | None) -> Got:
    """Run something in an event loop of its own, as long as it is wanted, and no longer than so many seconds.

    Not by ``asyncio.run``: at its end that waits for the threads that resolve names, however long they take.
    """
    loop = asking.Loop()
    loop.set_default_executor(ThreadPoolExecutor(1, "resolve"))
    try:
        return loop.run_until_complete(_watched(coroutine, seconds, unwanted))
    except httpx.TimeoutException as error:
        raise Failed(f"no answer within {PATIENCE:g} s", passing=True) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        cause = asking.innermost(error)
        untrusted = isinstance(cause, ssl.SSLCertVerificationError)
        raise Failed(f"{type(cause).__name__}: {cause}".strip(": ")[:300], passing=not untrusted) from error
    finally:
        for connection in loop.connections:
            connection.close()
        # The loop closes the sockets in its next round.
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _watched(coroutine: Coroutine[Any, Any, Got], seconds: float, unwanted: Event | None) -> Got:
    end = time.monotonic() + seconds
    task = asyncio.ensure_future(coroutine)
    while not (task.done() or (unwanted and unwanted.is_set())) and (left := end - time.monotonic()) > 0:
        await asyncio.wait((task,), timeout=min(left, WATCH))
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait((task,), timeout=_GRACE)
    if unwanted and unwanted.is_set():
        raise Unwanted
    raise Failed(f"it took longer than {seconds:g} s", passing=True)
