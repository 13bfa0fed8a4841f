"""What a client sent: the body as JSON and the parameters of the query, or :class:`Invalid` with the field named."""

import re
from collections.abc import Collection
from contextlib import suppress
from datetime import date, timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, ValidationError

from labctl import clock
from labctl.errors import Invalid
from labctl.http.resource import Request

Model = TypeVar("Model", bound=BaseModel)

MAX_DEPTH = 100
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TRUE = frozenset(("1", "true", "True"))
_FALSE = frozenset(("0", "false", "False"))


def read_json(request: Request, limit: int) -> Any:
    """Read the body as JSON whatever its Content-Type says; ``limit`` is its largest size in bytes.

    Raises :class:`Invalid` for what is no JSON, too large, too deep, or holds a NUL, which PostgreSQL cannot store.
    """
    try:
        raw = request.body_file.read(limit + 1)
        if len(raw) > limit:
            # A client that is not listened to loses its next request with the connection.
            _drain(request.body_file, 16 * limit)
    except Exception as error:
        # The client has gone, or its chunks are none; the server and WebOb have an exception each for that.
        raise Invalid("the body is broken off", field="body") from error
    if len(raw) > limit:
        raise Invalid(f"the body is larger than {limit} bytes", field="body")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Invalid("could not decode JSON body") from error
    if b"\\u0000" in raw or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check(value, "", 0)
    return value


def _drain(stream: Any, most: int) -> None:
    left = most
    while left > 0 and (some := stream.read(65536)):
        left -= len(some)


def _check(value: Any, path: str, depth: int) -> None:
    """Walk a value; only a body that looks suspicious as bytes is worth it."""
    if depth > MAX_DEPTH:
        raise Invalid(f"nested deeper than {MAX_DEPTH} levels", field=path.split(".")[0] or "body")
    if isinstance(value, str):
        if "\0" in value:
            raise Invalid("must not contain NUL characters", field=path or "body")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, f"{path}.{key!r}".lstrip(".") if "\0" in key else path, depth)
            _check(item, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, path, depth + 1)


def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Read a body that must be a JSON object; raises :class:`Invalid`."""
    value = read_json(request, limit)
    if not isinstance(value, dict):
        raise Invalid("must be a JSON object", field="body")
    return value


def parse(model: type[Model], data: dict[str, Any]) -> Model:
    """Validate ``data``; raises :class:`Invalid` that names every field that is wrong and says what is allowed."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise Invalid(describe(error)) from error


def describe(error: ValidationError) -> str:
    """Say in one line what is wrong with each field, without repeating what was sent."""
    wrong = []
    for item in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        wrong.append(f"{field}: {message}" if field else message)
    return "; ".join(wrong)


def text(request: Request, name: str) -> str | None:
    """Read a parameter of the query as text; None if it is missing."""
    value = request.query.get(name)
    return None if value is None else _checked(value, name)


def texts(request: Request, name: str) -> list[str]:
    """Read all values of a parameter that may be given several times; :func:`text` reads the last one alone."""
    pairs = parse_qsl(request.environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="surrogateescape")
    return [_checked(value, name) for key, value in pairs if key == name]


def once(request: Request, name: str) -> str | None:
    """Read a parameter as :func:`text`; raises :class:`Invalid` if it is given twice, when one value would be lost."""
    values = texts(request, name)
    if len(values) > 1:
        raise Invalid("must be given once", field=name)
    return values[0] if values else None


def _checked(value: str, name: str) -> str:
    if value.isascii() and "\0" not in value:
        return value
    if "\0" in value:
        raise Invalid("must not contain NUL characters", field=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Invalid("must be UTF-8", field=name) from error
    return value


def flag(request: Request, name: str) -> bool | None:
    """Read a parameter as true (1, true, True) or false (0, false, False); None if it is missing."""
    value = text(request, name)
    if value is None or value == "":
        return None
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise Invalid("must be one of 1, true, 0, false", field=name)


def choice(request: Request, name: str, allowed: Collection[str]) -> str | None:
    """Read a parameter that must be one of some words; None if it is missing."""
    value = text(request, name)
    if value is not None and value not in allowed:
        raise Invalid(f"must be one of {', '.join(allowed)}", field=name)
    return value


def integer(request: Request, name: str, default: int | None, *, least: int, most: int) -> int | None:
    """Read a parameter as a whole number from ``least`` to ``most``; ``default`` if it is missing."""
    value = text(request, name)
    if value is None:
        return default
    number = int(value) if _INTEGER.fullmatch(value) else None
    if number is None or not least <= number <= most:
        raise Invalid(f"must be a whole number from {least} to {most}", field=name)
    return number


def names(request: Request, name: str) -> list[str] | None:
    """Read a parameter as a comma-separated list, without empty entries and repetitions; None if it is missing."""
    value = text(request, name)
    return None if value is None else list(dict.fromkeys(entry for entry in value.split(",") if entry))


def day(value: str, field: str | None = None) -> date:
    """Read ``YYYY-MM-DD``, ``today`` or ``yesterday`` (in UTC); raises :class:`Invalid`."""
    if value in ("today", "yesterday"):
        today = clock.now().date()
        return today if value == "today" else today - timedelta(days=1)
    if _DAY.fullmatch(value):
        with suppress(ValueError):
            return date.fromisoformat(value)
    raise Invalid("date format must match YYYY-MM-DD", field=field)
