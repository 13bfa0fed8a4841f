"""An LDAP server for the tests that need one."""

from collections.abc import Iterator

import pytest

from . import slapd


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> slapd.Certificates:
    if not slapd.INSTALLED:
        pytest.skip(slapd.MISSING)
    return slapd.Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[slapd.Listener]:
    """The server that a referral leads to."""
    with slapd.listening() as listener:
        yield listener


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, certificates: slapd.Certificates, elsewhere: slapd.Listener
) -> Iterator[slapd.Slapd]:
    """A slapd with users."""
    running = slapd.Slapd(tmp_path_factory.mktemp("slapd"), certificates, elsewhere.url)
    yield running
    running.stop()
