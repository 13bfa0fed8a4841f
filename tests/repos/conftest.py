"""The application as a storage node with ``api_user`` and ``api_key`` sees it, and as anybody does."""

from dataclasses import replace

import pytest
from sqlalchemy.orm import Session
from webtest import TestApp

from labctl.app import make_app
from labctl.settings import Settings
from tests.repos.factories import KEY, USER


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, api_user=USER, api_key=KEY)


@pytest.fixture
def app(session: Session, settings: Settings) -> TestApp:
    """The whole application, asked with the credential that may post; what it changes is undone after the test."""
    app = TestApp(make_app(settings))
    app.authorization = ("Basic", (USER, KEY))
    return app


@pytest.fixture
def anybody(app: TestApp) -> TestApp:
    """The same application, asked without a credential."""
    return TestApp(app.app)
