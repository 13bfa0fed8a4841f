"""How a URL and a method find what answers them, and how the answer goes out."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webtest import TestApp

from labctl.http.resource import Request, Resource
from tests.http.conftest import Tree

Serve = Callable[[Resource], TestApp]


class Echo(Resource):
    """Says what segment it was asked for."""

    def __init__(self, segment: str) -> None:
        self.segment = segment
        self.children = {"below": Tree(get=lambda request: {"below": segment})}

    def get(self, request: Request) -> Any:
        return {"segment": self.segment}


class Echoes(Resource):
    """Any segment names something; one word is taken."""

    def __init__(self) -> None:
        self.children = {"word": Tree(get=lambda request: {"word": True})}

    def item(self, segment: str) -> Resource | None:
        return Echo(segment)


@pytest.fixture
def echo(serve: Serve) -> Callable[..., Any]:
    """Ask an undecoded target, as gunicorn hands it over."""
    app = serve(Tree({"echo": Echoes()}))

    def ask(target: str, **options: Any) -> Any:
        return app.get("/", extra_environ={"RAW_URI": target}, **options)

    return ask


@pytest.mark.parametrize(
    ("written", "segment"),
    [
        ("plain", "plain"),
        ("a:b", "a:b"),
        ("a+b", "a+b"),
        ("a.json", "a.json"),
        ("a.tar.gz", "a.tar.gz"),
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("%2F", "/"),
        ("a%20b", "a b"),
        ("a%2Bb", "a+b"),
        ("a%252Fb", "a%2Fb"),
        ("100%25", "100%"),
        ("%C3%A4", "ä"),
        ("%F0%9F%98%80", "😀"),
        ("%E2%80%A8", "\u2028"),
        ("%3Fa=b%23c", "?a=b#c"),
        ("__class__", "__class__"),
        ("get", "get"),
        ("%2e%2e", ".."),
        ("-", "-"),
    ],
)
@pytest.mark.parametrize("tail", ["", "/", "?x=/y", "/?x=%2F"])
def test_a_segment_may_be_any_text_and_is_decoded_once(
    echo: Callable[..., Any], written: str, segment: str, tail: str
) -> None:
    assert echo(f"/echo/{written}{tail}").json == {"segment": segment}


def test_a_client_that_does_not_encode_is_understood_as_well(echo: Callable[..., Any]) -> None:
    for written, segment in (("ä", "ä"), ("ä%20😀", "ä 😀"), ("ä%2F%C3%A4", "ä/ä")):
        assert echo(f"/echo/{written}".encode().decode("latin-1")).json == {"segment": segment}
    echo("/echo/\xff", status=404)


def test_a_word_wins_over_a_name_and_paths_go_on_below_names(echo: Callable[..., Any]) -> None:
    assert echo("/echo/word").json == {"word": True}
    assert echo("/echo/a%2Fb/below/").json == {"below": "a/b"}
    assert echo("http://lab.example.com/echo/a").json == {"segment": "a"}
    assert echo("http://lab.example.com/echo/a%2Fb/below?x").json == {"below": "a/b"}


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/nosuch",
            "/echo",
            "/echo/",
            "/echo//",
            "/echo//a",
            "//echo/a",
            "/echo/a//",
            "/echo/a/nosuch",
            "/echo/a/get",
        ),
        *("/echo/%00", "/echo/a%00b", "/echo/%ff", "/echo/%C3", "/echo/%ED%A0%80", "/%ff", "/", "*", "http://[x/echo"),
        *("/echo/a/children", "/echo/a/__class__", "/__init__", "/get", "/item", "/echo/a/below/below", "http://x"),
    ],
)
def test_any_other_path_is_not_found_in_json(echo: Callable[..., Any], target: str) -> None:
    answer = echo(target, status=404)
    assert answer.content_type == "application/json"
    assert list(answer.json) == ["message"]
    assert answer.headers["X-Request-ID"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("/%aé.:0123456789ABCDEFabcdef?#[]@\\;", max_size=20))
def test_no_target_whatever_is_an_error_of_the_server(echo: Callable[..., Any], target: str) -> None:
    assert echo(f"/echo/{target}".encode().decode("latin-1"), status="*").status_int in (200, 404)


def test_a_server_that_hands_over_decoded_paths_only_is_served_as_well(serve: Serve) -> None:
    app = serve(Tree({"echo": Echoes()}))
    assert app.get("/echo/%C3%A4+:.x/").json == {"segment": "ä+:.x"}
    assert list(app.get("/echo/%ff", status=404).json) == ["message"]


@pytest.mark.parametrize("accept", ["text/html", "image/png", "*/*", "application/xml;q=0.9", "", "nonsense"])
@pytest.mark.parametrize("path", ["/runs/", "/runs/nosuch", "/nosuch", "/nodes/", "/"])
def test_accept_makes_no_difference(app: TestApp, accept: str, path: str) -> None:
    answer = app.get(path, headers={"Accept": accept}, status="*")
    assert answer.content_type == "application/json"
    assert answer.json == app.get(path, status="*").json


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""])
def test_a_body_is_json_whatever_its_type_says(app: TestApp, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    sent = app.request("/runs/", method="POST", body=b'{"name": "a"}', headers=headers)
    assert sent.json == {}
    assert app.get("/runs/a").json["name"] == "a"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/", "GET, HEAD, OPTIONS"),
        ("/api/", "GET, HEAD, OPTIONS"),
        ("/runs/", "GET, HEAD, OPTIONS, POST"),
        ("/api/runs/", "GET, HEAD, OPTIONS, POST"),
        ("/runs/a/", "DELETE, GET, HEAD, OPTIONS"),
        ("/runs/a/jobs/", "GET, HEAD, OPTIONS, POST"),
        ("/runs/a/jobs/1/", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("/runs/branch/", "GET, HEAD, OPTIONS"),
        ("/runs/branch/main/", "GET, HEAD, OPTIONS"),
        ("/queue/", "GET, HEAD, OPTIONS, POST, PUT"),
        ("/queue/pop_queue", "GET, HEAD, OPTIONS, POST"),
        ("/queue/stats/", "OPTIONS, POST"),
    ],
)
@pytest.mark.parametrize("slash", [True, False])
def test_options_and_a_wrong_method_say_what_is_allowed(app: TestApp, path: str, methods: str, slash: bool) -> None:
    path = path if slash or path == "/" else path.rstrip("/")
    told = app.options(path)
    assert (told.status_int, told.body, told.headers["Allow"]) == (204, b"", methods)
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"):
        if method not in methods.split(", "):
            answer = app.request(path, method=method, status=405)
            assert answer.headers["Allow"] == methods
            assert list(answer.json) == ["message"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path", ["/nosuch", "/api/nosuch", "/runs/a/jobs/1/nosuch", "/runs/date/from/", "/runs/a/b/c/d", "/_health/x"]
)
def test_an_unknown_path_is_not_found_by_any_method(app: TestApp, method: str, path: str) -> None:
    answer = app.request(path, method=method, status=404)
    assert list(answer.json) == ["message"]


@pytest.mark.parametrize("path", ["/runs/", "/runs/nosuch", "/nosuch", "/", "/api/", "/healthcheck"])
def test_head_answers_as_get_does_without_the_body(app: TestApp, path: str) -> None:
    got, head = app.get(path, status="*"), app.head(path, status="*")
    assert (head.status, head.body) == (got.status, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert head.headers["Content-Length"] == got.headers["Content-Length"]


@pytest.mark.parametrize("name", ["__class__", "__init__", "item", "get", "children", "mount", "settings", "_pecan"])
@pytest.mark.parametrize("tree", ["/runs", "/api/runs", "/nodes", "/api/machines"])
def test_the_attributes_of_controllers_are_no_urls(app: TestApp, name: str, tree: str) -> None:
    for path in (f"{tree}/{name}", f"{tree}/a/{name}", f"{tree}/a/jobs/{name}"):
        assert list(app.get(path, status=404).json) == ["message"]


@pytest.mark.parametrize("path", ["/runs/", "/runs/branch/main/", "/runs/a/jobs/", "/queue/", "/queue/pop_queue"])
@pytest.mark.parametrize(
    "query",
    ["count=%00", "queue=%ff", "page=%C3", "fields=a%00", "fields=%ff", "paused_by=%00", "%ff=1", "%00", "%", "&=;"],
)
def test_a_query_that_is_no_text_is_the_client_s_mistake(app: TestApp, path: str, query: str) -> None:
    app.post_json("/runs/", {"name": "a"})
    answer = app.get(f"{path}?{query}", status="*")
    assert answer.status_int in (200, 400)
    if answer.status_int == 400:
        assert list(answer.json) == ["message"]


def test_a_query_with_broken_utf_8_is_refused_with_the_field_named(app: TestApp) -> None:
    assert app.get("/runs/?count=%ff", status=400).json["message"].startswith("count: ")
    assert app.get("/queue/pop_queue?queue=%ff", status=400).json["message"].startswith("queue: ")


class Stream:
    """A stream of two pieces that knows whether it was closed."""

    def __init__(self) -> None:
        self.pieces = iter((b"one", b"two"))
        self.closed = False
        self.read = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self.pieces)
        self.read += 1
        return piece

    def close(self) -> None:
        self.closed = True


def call(app: TestApp, method: str) -> Any:
    environ = {"REQUEST_METHOD": method, "SERVER_NAME": "lab", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
    return app.app({**environ, "PATH_INFO": "/", "RAW_URI": "/"}, lambda status, headers, exc_info=None: None)


def test_a_stream_is_not_begun_before_it_goes_out_and_is_closed_when_the_client_leaves(serve: Serve) -> None:
    stream = Stream()
    body = call(serve(Tree(get=lambda request: stream)), "GET")
    assert stream.read == 0
    assert next(iter(body)) == b"one"
    # What a WSGI server does whether or not the client took everything.
    body.close()
    assert (stream.closed, stream.read) == (True, 1)


def test_a_generator_that_is_streamed_runs_its_clean_up_when_the_client_leaves(serve: Serve) -> None:
    done = []

    def stream() -> Iterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            done.append(True)

    body = call(serve(Tree(get=lambda request: stream())), "GET")
    assert next(iter(body)) == b"one"
    assert done == []
    body.close()
    assert done == [True]


def test_head_of_a_stream_reads_nothing_and_closes_it(serve: Serve) -> None:
    stream = Stream()
    body = call(serve(Tree(get=lambda request: stream)), "HEAD")
    assert b"".join(body) == b""
    body.close()
    assert (stream.closed, stream.read) == (True, 0)


def test_an_answer_of_nothing_is_204_without_a_type(serve: Serve) -> None:
    answer = serve(Tree(get=lambda request: None)).get("/")
    assert (answer.status_int, answer.body, answer.content_type) == (204, b"", None)


@pytest.mark.parametrize("given_id", ["abc", "A-1.b_c", "x" * 64])
def test_a_sane_request_id_of_the_client_is_kept(app: TestApp, given_id: str) -> None:
    assert app.get("/runs/", headers={"X-Request-ID": given_id}).headers["X-Request-ID"] == given_id


@pytest.mark.parametrize("given_id", ["", "x" * 65, "a b", 'a"b', "a;b", "é"])
def test_another_request_id_is_replaced_by_one_of_our_own(app: TestApp, given_id: str) -> None:
    ids = {app.get("/runs/", headers={"X-Request-ID": given_id}).headers["X-Request-ID"] for _ in range(2)}
    assert len(ids) == 2
    assert given_id not in ids


def test_every_request_has_one_log_line_even_one_whose_path_is_no_text(
    app: TestApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "labctl.http")
    for path, status in (("/runs/", 200), ("/runs/a%0Ab", 404), ("/runs/%ff", 404), ("/nosuch", 404)):
        caplog.clear()
        answer = app.get(path, status=status)
        (line,) = caplog.records
        assert line.getMessage() == "request_done"
        assert (line.method, line.status) == ("GET", status)
        assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("host", ['x>; rel="evil", <http://e', "a b", "", "x/y"])
def test_a_host_header_that_is_no_host_is_in_no_answer(app: TestApp, host: str) -> None:
    app.post_json("/runs/", {"name": "a"})
    answer = app.get("/runs/?count=1", extra_environ={"HTTP_HOST": host})
    assert answer.json[0]["href"].startswith("http://localhost:80/runs/a")
    assert answer.headers["Link"].startswith("<http://localhost:80/runs/?count=1&after=")
