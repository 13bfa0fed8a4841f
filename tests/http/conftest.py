"""Small trees of URLs, served as labctl's own is."""

from collections.abc import Callable
from typing import Any

import pytest
from webtest import TestApp

from labctl.app import Application
from labctl.errors import Unauthenticated
from labctl.http.credentials import Claim, Identity
from labctl.http.hooks import RequestHook
from labctl.http.resource import Request, Resource


class Tree(Resource):
    """A resource made of functions and children."""

    def __init__(self, children: dict[str, Resource] | None = None, **handlers: Callable[[Request], Any]) -> None:
        self.children = children or {}
        for name, handler in handlers.items():
            setattr(self, name, handler)


@pytest.fixture
def serve() -> Callable[[Resource], TestApp]:
    """Serve a tree to which no credential leads."""

    def nobody(claim: Claim) -> Identity:
        raise Unauthenticated

    return lambda root: TestApp(
        Application(
            root,
            hooks=[RequestHook(nobody, {})],
            request_cls=Request,
            force_canonical=False,
            guess_content_type_from_ext=False,
            use_context_locals=False,
        )
    )
