"""The application over the pools of the recorded exchanges."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl import app as application
from labctl.settings import Settings
from tests.vms.factories import make_settings, make_token

#: Makes an application with some settings changed.
Serve = Callable[..., TestApp]


@pytest.fixture
def serve(session: Session, settings: Settings) -> Serve:
    return lambda **changes: TestApp(application.make_app(make_settings(settings, **changes)))


@pytest.fixture
def app(serve: Serve) -> TestApp:
    return serve()


@pytest.fixture
def jdoe(session: Session) -> dict[str, str]:
    """The header with jdoe's token."""
    return make_token(session)


@pytest.fixture
def other(session: Session) -> dict[str, str]:
    """The header with another user's token."""
    return make_token(session, "other")


@pytest.fixture
def admin(session: Session) -> dict[str, Any]:
    """The header with an admin's token."""
    return make_token(session, "root", admin=True)
