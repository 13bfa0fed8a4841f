"""Pieces of output as they are stored: JSON that is ready to be sent, and that every database and client takes."""

import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from labctl.remote.executor import Result
from labctl.remote.states import EXCLUSIVE, HostState, Operation, Status

#: How a host has ended whose operation has one result, or whose last one says so.
ENDS: dict[Status, HostState] = {
    Status.OK: HostState.OK,
    Status.CHANGED: HostState.CHANGED,
    Status.SKIPPED: HostState.SKIPPED,
    Status.FAILED: HostState.FAILED,
    Status.UNREACHABLE: HostState.UNREACHABLE,
}
#: What a host's state is when several things have come from it: that of the last of these.
ORDER = (HostState.SKIPPED, HostState.OK, HostState.CHANGED, HostState.UNREACHABLE, HostState.FAILED)
BAD = frozenset((HostState.FAILED, HostState.UNREACHABLE))

#: What stands for characters that cannot be stored or sent.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
UNSPEAKABLE = re.compile("[\0\ud800-\udfff]")


def make(status: Status, values: Mapping[str, Any], most: int) -> str:
    """Give the chunk of a result; of one longer than ``most`` bytes the longest texts are cut in the middle.

    They are cut to the same length, and to no shorter one than is necessary for the whole to fit.
    """
    plain = {**values, "status": int(status)}
    chunk = _dump(plain)
    if len(chunk) <= most:
        return chunk.decode()
    # As JSON a character takes one to twelve bytes: which length fits is found by halving what it may be.
    best = None
    fits, limit = 8, most
    while limit - fits > max(8, limit // 256):
        middle = (fits + limit) // 2
        chunk = _dump(_cut(plain, middle))
        if len(chunk) <= most:
            best, fits = chunk, middle
        else:
            limit = middle
    if best is None:
        best = _dump({"status": int(status), "message": f"{len(_dump(plain))} bytes of output are too many"})
    return best.decode()


def _dump(values: Any) -> bytes:
    """Give JSON; values that it has no word for, or that cannot be stored, are replaced."""
    try:
        found = orjson.dumps(values)
        if b"\\u0000" not in found:
            return found
    except TypeError:
        pass
    return orjson.dumps(_clean(values))


def _clean(value: Any) -> Any:
    match value:
        case str():
            return UNSPEAKABLE.sub(REPLACEMENT, value)
        case bool() | None:
            return value
        case int():
            return value if -(1 << 63) <= value < (1 << 64) else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {_clean(str(key)): _clean(one) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(one) for one in value]
        case bytes():
            return _clean(value.decode("utf-8", "replace"))
    return _clean(str(value))


def _cut(value: Any, limit: int) -> Any:
    """Cut texts that are longer than ``limit``: the beginning and the end are what people look for."""
    match value:
        case str() if len(value) > limit:
            half = limit // 2
            return f"{value[:half]}\n... {len(value) - 2 * half} characters are left out ...\n{value[-half:]}"
        case Mapping():
            return {key: _cut(one, limit) for key, one in value.items()}
        case list() | tuple():
            return [_cut(one, limit) for one in value]
    return value


def nothing(operation: Operation, host: str, reason: str) -> Result:
    """Give the result of a host that gave none."""
    values: dict[str, Any] = {"message": reason}
    if operation == Operation.FACTER:
        values["facts"] = {}
    elif operation == Operation.EXECUTE:
        values |= {"rtc": None, "stdout": "", "stderr": reason}
    elif operation in EXCLUSIVE:
        values |= {"name": "end", "return_data": reason}
    return Result(host, Status.FAILED, values)


def failed(operation: Operation, number: int, hosts: int) -> str:
    """Say of how many hosts an operation has failed; clients know these words."""
    if operation in (Operation.PING, Operation.FACTER):
        return f"total {number} of {hosts} remote host(s) no response"
    return f"{number} of {hosts} remote host(s) got {operation} errors"
