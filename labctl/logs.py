"""Log lines: an event's name first, its fields after it, the request's id in each; as text or as JSON."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

from labctl.settings import Settings

#: The id of the request (or of the background task) that is being worked on.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if "request_id" not in fields and (current := request_id.get()):
        fields["request_id"] = current
    return fields


class TextFormatter(logging.Formatter):
    """``2026-01-02T03:04:05.678Z INFO labctl.http request_done method=GET status=200 request_id=...``."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line, and the traceback after it if there is one."""
        fields = "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name} {_one_line(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line; a traceback is the field ``traceback``."""
        line = {"time": _time(record), "level": record.levelname, "logger": record.name, "event": record.getMessage()}
        line.update(_fields(record))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _quoted(value: Any) -> str:
    # What a client sent must not be able to forge a line or a field; json escapes what is not ASCII.
    text = value if isinstance(value, str) else str(value)
    return text if text.isprintable() and " " not in text and '"' not in text else json.dumps(text)


def setup(settings: Settings) -> None:
    """Send the logs of this process to standard error, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=settings.log_level, force=True)
    for chatty in ("alembic", "httpcore", "httpx", "procrastinate"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
