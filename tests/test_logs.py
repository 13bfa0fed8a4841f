"""Log lines: one line for one event, whatever a client sent, as text or as JSON."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl import logs
from labctl.settings import Settings


def record(message: str = "request_done", level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    made = logging.getLogger("labctl.test").makeRecord("labctl.test", level, "f", 1, message, (), None, extra=fields)
    made.created = 1767323045.678
    return made


def text(**fields: Any) -> str:
    return logs.TextFormatter().format(record(**fields))


def parsed(**fields: Any) -> dict[str, Any]:
    return json.loads(logs.JSONFormatter().format(record(**fields)))


@pytest.fixture
def failed() -> logging.LogRecord:
    """A record with a traceback."""
    made = record("request_failed", logging.ERROR, path="/x")
    try:
        raise ZeroDivisionError("no\nway")
    except ZeroDivisionError:
        made.exc_info = sys.exc_info()
    return made


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    """Forget the request that another test left behind."""
    token = logs.request_id.set(None)
    yield
    logs.request_id.reset(token)


@pytest.fixture
def request_id() -> Iterator[str]:
    token = logs.request_id.set("abc")
    yield "abc"
    logs.request_id.reset(token)


def test_a_line_of_text_is_time_level_logger_event_and_fields() -> None:
    line = text(method="GET", status=200, path="/runs/a:b", ms=1.5)
    expected = "2026-01-02T03:04:05.678Z INFO labctl.test request_done method=GET status=200 path=/runs/a:b ms=1.5"
    assert line == expected


def test_a_line_of_json_is_one_object() -> None:
    assert parsed(method="GET", status=200, path="/ä", none=None, list=[1, {"a": 2}]) == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "INFO",
        "logger": "labctl.test",
        "event": "request_done",
        "method": "GET",
        "status": 200,
        "path": "/ä",
        "none": None,
        "list": [1, {"a": 2}],
    }


def test_every_line_has_the_id_of_the_request(request_id: str) -> None:
    assert text().endswith(" request_id=abc")
    assert parsed()["request_id"] == "abc"
    assert text(request_id="own").endswith(" request_id=own")


@pytest.mark.parametrize(
    "evil",
    [
        "/runs/a\n2026-01-02T03:04:05.678Z INFO labctl.http request_done",
        "a\rb",
        "a status=200",
        'a" status="200',
        "a\x1b[31mb",
        "a\x00b",
        "a\x7fb",
        "a\u0085b",
        "a\u2028b",
        "a\u2029b",
        "a\u202eb",
        "a\tb",
        "",
        "\udcff",
    ],
)
def test_what_a_client_sent_forges_neither_a_line_nor_a_field(evil: str) -> None:
    line = text(path=evil, status=404)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    before, _, after = line.partition(" path=")
    assert before == "2026-01-02T03:04:05.678Z INFO labctl.test request_done"
    value, end = json.JSONDecoder().raw_decode(after) if after.startswith('"') else (None, after.index(" "))
    assert after[end:] == " status=404"
    if value is not None:
        assert value == evil


@given(st.text(), st.text())
def test_any_text_in_fields_is_one_line_that_can_be_read_back(path: str, user: str) -> None:
    line = text(path=path, user=user)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    one = logs.JSONFormatter().format(record(path=path, user=user))
    assert "\n" not in one
    assert (json.loads(one)["path"], json.loads(one)["user"]) == (path, user)


def test_a_message_of_several_lines_is_one_line() -> None:
    for formatter in (logs.TextFormatter(), logs.JSONFormatter()):
        assert len(formatter.format(record("one\ntwo\r\nthree")).splitlines()) == 1


def test_values_of_other_types_are_written_as_text_too() -> None:
    value = object()
    assert json.loads(logs.JSONFormatter().format(record(value=value)))["value"] == str(value)
    assert parsed(value={1: 2})["value"] == {"1": 2}
    assert "value=" in text(value=value)


def test_a_traceback_follows_the_line_of_text_and_is_a_field_of_the_json(failed: logging.LogRecord) -> None:
    first, *rest = logs.TextFormatter().format(failed).splitlines()
    assert first.endswith("ERROR labctl.test request_failed path=/x")
    assert rest[0].startswith("Traceback")
    lines = logs.JSONFormatter().format(failed).splitlines()
    assert len(lines) == 1
    assert "ZeroDivisionError" in json.loads(lines[0])["traceback"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_settings_choose_form_and_level(
    log_format: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    chatty = {name: logging.getLogger(name).level for name in ("alembic", "httpx", "procrastinate")}
    # The root logger's handlers are pytest's own; setup() would close them.
    monkeypatch.setattr(root, "handlers", [])
    try:
        logs.setup(Settings(log_format=log_format, log_level="WARNING"))
        logging.getLogger("labctl.test").info("quiet")
        logging.getLogger("labctl.test").warning("loud", extra={"x": 1})
    finally:
        root.setLevel(before[0])
        for name, level in chatty.items():
            logging.getLogger(name).setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    if log_format == "json":
        assert (json.loads(line)["event"], json.loads(line)["x"]) == ("loud", 1)
    else:
        assert line.endswith("WARNING labctl.test loud x=1")
