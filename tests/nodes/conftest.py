"""Storage nodes to be asked, and an application that trusts their certificate."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from webtest import TestApp

from labctl.nodes import health
from labctl.settings import Settings

from .servers import Storage, make_certificate, running

CREDENTIAL = ("Basic", ("uploader", "secret"))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def strangers_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(autouse=True)
def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the certificate be one that this machine trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    health.trusted.cache_clear()
    yield
    health.trusted.cache_clear()


@pytest.fixture
def storage(certificate: Path) -> Iterator[Storage]:
    with running(certificate) as server:
        yield server


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With a pair of user and password, which costs no statement."""
    return replace(settings, api_user=CREDENTIAL[1][0], api_key=CREDENTIAL[1][1], health_check_timeout=10)


@pytest.fixture
def app(app: TestApp) -> TestApp:
    """With a credential in every request."""
    app.authorization = CREDENTIAL
    return app
