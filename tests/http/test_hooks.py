"""What holds for requests of all trees: pages of other sites change nothing, and no cache or HEAD meets what acts."""

from collections.abc import Callable

import pytest
from webtest import TestApp

from labctl import errors
from labctl.http.dialects import PADDLES, SHAMAN, VMPOOLER
from labctl.http.resource import Mount, Request, Resource
from labctl.settings import Settings
from tests.http.conftest import Tree
from tests.routes import SAMPLE, routes

Serve = Callable[[Resource], TestApp]

REFUSED = "a page of another site has your browser ask for this"
READS = {"GET", "HEAD", "OPTIONS"}


class Bell(Tree):
    """Its GET acts: it rings."""

    acts = True

    def __init__(self, mount: Mount | None = None) -> None:
        super().__init__()
        self.mount = mount
        self.rung = 0

    def get(self, request: Request) -> dict[str, int]:
        self.rung += 1
        return {"rung": self.rung}

    def post(self, request: Request) -> dict[str, int]:
        return self.get(request)


# Requests that act


def test_head_of_a_get_that_acts_is_refused_in_the_dialect_of_the_tree_and_does_nothing(serve: Serve) -> None:
    bell = Bell(Mount(None, VMPOOLER))
    app = serve(Tree({"bell": bell}))
    answer = app.head("/bell", status=405)
    assert (answer.headers["Allow"], answer.content_type) == ("GET, OPTIONS, POST", "application/json")
    assert app.options("/bell", status=204).headers["Allow"] == "GET, OPTIONS, POST"
    assert bell.rung == 0
    assert app.get("/bell").json == {"rung": 1}


def test_no_answer_to_a_get_that_acts_is_kept_by_a_cache(serve: Serve) -> None:
    class Broken(Bell):
        def get(self, request: Request) -> dict[str, int]:
            raise errors.NotFound

    app = serve(Tree({"bell": Bell(), "broken": Broken(), "quiet": Tree(get=lambda request: {})}))
    assert app.get("/bell").headers["Cache-Control"] == "no-store"
    assert app.get("/broken", status=404).headers["Cache-Control"] == "no-store"
    assert "Cache-Control" not in app.get("/quiet").headers
    assert "Cache-Control" not in app.post("/bell").headers


def test_no_controller_that_acts_answers_head(app: TestApp) -> None:
    for path in ("/ping", "/facter", "/service", "/execute", "/api/remote/ping", "/api/nodes/next"):
        answer = app.head(path, status=405)
        assert "GET" in answer.headers["Allow"] and "HEAD" not in answer.headers["Allow"]


# Pages of other sites


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_has_a_browser_change_nothing_in_any_tree(app: TestApp, site: str) -> None:
    asked = 0
    for route in routes(Settings()):
        # Some word that is known at the places that know only some.
        path = "/".join(_sample(segment) for segment in route.path.split("/"))
        for method in sorted(set(route.methods) - READS):
            answer = app.request(path, method=method, headers={"Sec-Fetch-Site": site}, status="*")
            assert (answer.status_int, REFUSED in answer.text) == (403, True), (method, route.path)
            asked += 1
    assert asked > 50


def _sample(segment: str) -> str:
    if segment == "{column}":
        return "branch"
    return SAMPLE if segment.startswith("{") else segment


@pytest.mark.parametrize(("dialect", "body"), [(PADDLES, {"message": REFUSED}), (SHAMAN, None)])
def test_it_is_refused_in_the_dialect_of_the_tree(serve: Serve, dialect: object, body: object) -> None:
    bell = Bell(Mount(None, dialect))  # type: ignore[arg-type]
    app = serve(Tree({"bell": bell}))
    headers = {"Sec-Fetch-Site": "cross-site"}
    for answer in (app.get("/bell", headers=headers, status=403), app.post("/bell", headers=headers, status=403)):
        assert answer.json == body if body else answer.text == REFUSED
    assert bell.rung == 0


def test_it_is_refused_before_its_user_is_asked_for_a_password(app: TestApp) -> None:
    answer = app.get("/ping?target=a", headers={"Sec-Fetch-Site": "cross-site"}, status=403)
    assert "WWW-Authenticate" not in answer.headers
    basic = {"Authorization": "Basic eDp5", "Sec-Fetch-Site": "cross-site"}
    assert REFUSED in app.post_json("/runs/", {"name": "a"}, headers=basic, status=403).text
    assert app.get("/runs/").json == []


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}])
def test_programs_and_labctl_s_own_pages_change_what_they_like(app: TestApp, headers: dict[str, str]) -> None:
    app.post_json("/runs/", {"name": "a"}, headers=headers)
    assert [run["name"] for run in app.get("/runs/").json] == ["a"]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("method", sorted(READS))
def test_other_sites_may_link_to_what_only_reads(app: TestApp, site: str, method: str) -> None:
    assert app.request("/runs/", method=method, headers={"Sec-Fetch-Site": site}).status_int in (200, 204)
