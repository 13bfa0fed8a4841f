"""Answers: JSON by orjson, JSON that comes ready from the database, and streams."""

from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from webob import Response


class Text(str):
    """JSON that is ready to be sent; a controller returns it instead of an object."""

    __slots__ = ()


def as_list(texts: Iterable[str]) -> Text:
    """Make one JSON list of JSON texts."""
    return Text(f"[{','.join(texts)}]")


class Answer(Response):
    """An answer whose default type is JSON, without a charset, as every JSON client expects it."""

    default_content_type = "application/json"
    default_charset = None


def response(value: Any) -> Response:
    """Make the response to what a controller returned.

    A Response goes out as it is, :class:`Text` as ready JSON, an iterator of bytes as a stream that is closed when the
    client leaves, None as 204, everything else as JSON.
    """
    if isinstance(value, Response):
        return value
    if isinstance(value, Text):
        return Answer(body=value.encode())
    if value is None:
        return Answer(status=204, content_type=None)
    if isinstance(value, Iterator):
        return Answer(app_iter=value)
    return Answer(body=dumps(value))


def plain(text: str, status: int = 200) -> Response:
    """Make a response of plain text."""
    body = text.encode(errors="backslashreplace")  # it may repeat what is no UTF-8
    return Answer(status=status, body=body, content_type="text/plain", charset="UTF-8")


def redirect(url: str) -> Response:
    """Send the client to another URL, whatever its method's rules, with 302."""
    answer = plain(f"it is at {url}\n", 302)
    answer.headers["Location"] = url
    return answer


def with_status(value: Any, status: int) -> Response:
    """Make a response with another status than 200."""
    answer = response(value)
    answer.status_int = status
    return answer


def dumps(value: Any) -> bytes:
    """Write JSON; keys that are no strings become strings."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)


def raw(text: str) -> Any:
    """Make a part of what :func:`dumps` writes of JSON that is ready to be sent."""
    return orjson.Fragment(text)


def with_next(value: Any, next_url: str | None) -> Response:
    """Make a response that says in a Link header where the list goes on, if it does."""
    answer = response(value)
    if next_url is not None:
        answer.headers["Link"] = f'<{next_url}>; rel="next"'
    return answer
