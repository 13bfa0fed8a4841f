"""How what goes wrong is answered: in the dialect of the tree, and what nobody expected with a traceback in the log."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from webtest import TestApp

from labctl import errors
from labctl.http.dialects import PADDLES, Dialect
from labctl.http.resource import Mount, Resource
from tests.http.conftest import Tree

Serve = Callable[[Resource], TestApp]

#: A protocol that has its own status for one kind of error, and its own body for all.
ODD = Dialect("odd", {errors.Exhausted: 509}, lambda message: {"ok": False, "why": message})


def raising(error: Exception) -> Callable[[Any], Any]:
    def handler(request: Any) -> Any:
        raise error

    return handler


def mounted(dialect: Dialect, **handlers: Any) -> Tree:
    tree = Tree(**handlers)
    tree.mount = Mount(None, dialect)
    return tree


@pytest.mark.parametrize(
    ("error", "status", "paddles", "odd"),
    [
        (errors.Invalid("m"), 400, 400, 400),
        (errors.Unauthenticated("m"), 401, 401, 401),
        (errors.Forbidden("m"), 403, 403, 403),
        (errors.NotFound("m"), 404, 404, 404),
        (errors.Conflict("m"), 409, 400, 409),
        (errors.Exhausted("m"), 503, 503, 509),
        (errors.Unavailable("m"), 503, 503, 503),
    ],
)
def test_a_kind_of_error_has_its_status_and_its_body_in_each_dialect(
    serve: Serve, error: errors.LabError, status: int, paddles: int, odd: int
) -> None:
    handler = raising(error)
    app = serve(Tree({"own": Tree(get=handler), "p": mounted(PADDLES, get=handler), "o": mounted(ODD, get=handler)}))
    assert app.get("/own", status=status).json == {"message": "m"}
    assert app.get("/p", status=paddles).json == {"message": "m"}
    assert app.get("/o", status=odd).json == {"ok": False, "why": "m"}


def test_errors_of_routing_speak_the_dialect_of_the_tree_they_happen_in(serve: Serve) -> None:
    app = serve(Tree({"o": mounted(ODD, get=lambda request: {})}))
    assert list(app.get("/o/nosuch", status=404).json) == ["ok", "why"]
    answer = app.put("/o", status=405)
    assert list(answer.json) == ["ok", "why"]
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert list(app.get("/nosuch", status=404).json) == ["message"]


def test_the_field_stands_before_the_message(serve: Serve) -> None:
    app = serve(Tree(get=raising(errors.Invalid("is bad", field="count"))))
    assert app.get("/", status=400).json == {"message": "count: is bad"}


def test_an_error_without_a_message_says_what_its_kind_means(serve: Serve) -> None:
    assert serve(Tree(get=raising(errors.Conflict()))).get("/", status=409).json["message"]


def test_a_subclass_of_an_error_is_answered_as_its_parent(serve: Serve) -> None:
    class Gone(errors.NotFound):
        """It was here."""

    assert serve(Tree(get=raising(Gone()))).get("/", status=404).json == {"message": "It was here."}


def test_unauthenticated_says_how_to_log_in_and_unavailable_when_to_come_back(serve: Serve) -> None:
    app = serve(
        Tree(
            {
                "who": Tree(get=raising(errors.Unauthenticated())),
                "no": Tree(get=raising(errors.Unavailable(retry_after=7))),
            }
        )
    )
    assert app.get("/who", status=401).headers["WWW-Authenticate"].startswith("Basic ")
    assert app.get("/no", status=503).headers["Retry-After"] == "7"


def test_what_nobody_expected_is_500_with_the_request_id_and_the_log_has_the_traceback(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    app = serve(Tree({"o": mounted(ODD, get=raising(ZeroDivisionError("secret detail")))}))
    caplog.set_level(logging.INFO, "labctl.http")
    answer = app.get("/o", status=500, headers={"X-Request-ID": "find-me"})
    assert answer.content_type == "application/json"
    assert list(answer.json) == ["ok", "why"]
    assert "find-me" in answer.json["why"]
    assert answer.headers["X-Request-ID"] == "find-me"
    assert "secret detail" not in answer.text
    failed, done = caplog.records
    assert (failed.getMessage(), failed.levelname) == ("request_failed", "ERROR")
    assert failed.exc_info is not None
    assert "secret detail" in str(failed.exc_info[1])
    assert (done.getMessage(), done.status) == ("request_done", 500)


def test_what_nobody_expected_undoes_the_request_s_changes(app: TestApp, monkeypatch: pytest.MonkeyPatch) -> None:
    from labctl.runs import service

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise ZeroDivisionError

    # At the last moment: the run is in the database, the log of events is not written.
    monkeypatch.setattr(service, "record", fail)
    app.post_json("/runs/", {"name": "a"}, status=500)
    monkeypatch.undo()
    assert app.get("/runs/").json == []
    app.post_json("/runs/", {"name": "a"})


def test_an_answer_that_cannot_be_written_is_an_error_of_the_server(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(serve(Tree(get=lambda request: object())).get("/", status=500).json) == ["message"]
    assert any(record.getMessage() == "request_failed" for record in caplog.records)
