"""Reports of repos and builds as storage nodes and build jobs send them, and the sending."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.orm import Session
from webtest import TestApp

USER, KEY = "chacra", "secret"
SHA1 = "45107e21c568dd033c2f0a3107dec8f0b0e58374"
REPO_KEYS = [
    *("url", "chacra_url", "ref", "sha1", "distro", "distro_version", "distro_codename", "modified", "status"),
    *("flavor", "project", "archs", "extra"),
]
BUILD_KEYS = [
    *("url", "log_url", "ref", "sha1", "flavor", "status", "extra", "modified", "started", "completed", "project"),
    *("distro", "distro_version", "distro_codename", "distro_arch"),
]


def repo(number: Any = 1, **changes: Any) -> dict[str, Any]:
    """Give the report of a repo; its number tells it from others. What is changed to ... is left out."""
    report = {
        "ref": "main",
        "sha1": SHA1,
        "distro": "ubuntu",
        "distro_version": "jammy",
        "status": "ready",
        "url": f"https://chacra.example/r/{number}/",
        "chacra_url": f"https://chacra.example/repos/{number}/",
        "archs": ["x86_64"],
        **changes,
    }
    return {key: value for key, value in report.items() if value is not ...}


def build(number: Any = 1, **changes: Any) -> dict[str, Any]:
    """Give the report of a build; its number tells it from others. What is changed to ... is left out."""
    report = {
        "url": f"https://jenkins.example/job/{number}/",
        "log_url": f"https://jenkins.example/job/{number}/consoleFull",
        "ref": "main",
        "sha1": SHA1,
        "status": "started",
        "distro": "ubuntu",
        "distro_version": "jammy",
        "distro_arch": "x86_64",
        **changes,
    }
    return {key: value for key, value in report.items() if value is not ...}


def post_repo(app: TestApp, number: Any = 1, project: str = "ceph", **changes: Any) -> None:
    """Post a repo, which must succeed."""
    assert app.post_json(f"/api/repos/{project}/", repo(number, **changes)).json == {}


def post_build(app: TestApp, number: Any = 1, project: str = "ceph", **changes: Any) -> None:
    """Post a build, which must succeed."""
    assert app.post_json(f"/api/builds/{project}/", build(number, **changes)).json == {}


def ask(app: TestApp, url: str, method: str = "GET", **how: Any) -> Any:
    """Ask for a URL with whatever is encoded in it, as gunicorn hands it over."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return getattr(app, method.lower())(target, extra_environ={"RAW_URI": target}, **how)


def next_of(answer: Any) -> str | None:
    """Give the URL in the Link header, if there is one."""
    link: str | None = answer.headers.get("Link")
    if link is None:
        return None
    assert link.startswith("<http://localhost/") and link.endswith('>; rel="next"'), link
    return link.removeprefix("<http://localhost").removesuffix('>; rel="next"')


def walk(app: TestApp, url: str) -> list[Any]:
    """Follow a list along its Link headers to its end."""
    found, pages, following = [], 0, url
    while following:
        answer = ask(app, following)
        found += answer.json
        following = next_of(answer) or ""
        pages += 1
        assert pages < 200, "the list does not end"
    return found


def numbers(repos: list[dict[str, Any]]) -> list[str]:
    """Give the numbers of repos."""
    return [each["chacra_url"].rstrip("/").rpartition("/")[2] for each in repos]


@contextmanager
def undone(session: Session) -> Iterator[None]:
    """Undo what happens in the block."""
    savepoint = session.connection().begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()
        session.expire_all()
