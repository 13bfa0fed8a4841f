"""Asking a real slapd whether a password is right."""

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labctl.errors import Unavailable
from labctl.tokens.ldap import Directory, escaped, folded

from . import slapd
from .slapd import BASE, ODD, PASSWORD, PEOPLE, SERVICE, SERVICE_PASSWORD


@pytest.fixture
def directory(server: slapd.Slapd, certificates: slapd.Certificates) -> Callable[..., Directory]:
    """Make a directory over the running server: a search by the service account, with StartTLS, or as told."""

    def make(**changes: Any) -> Directory:
        usual = {
            "urls": [server.url],
            "ca_file": str(certificates.authority),
            "base": BASE,
            "bind_dn": SERVICE,
            "bind_password": SERVICE_PASSWORD,
            "timeout": 5,
        }
        return Directory(**{**usual, **changes})

    return make


@pytest.fixture
def direct(directory: Callable[..., Directory]) -> Directory:
    return directory(base="", bind_dn="", bind_password="", user_dn=f"uid={{user}},{PEOPLE}")


@pytest.fixture(autouse=True)
def nothing_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    for secret in (PASSWORD, SERVICE_PASSWORD, "not the password"):
        assert secret not in said


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["reason"] for record in caplog.records if record.message == "ldap_failed"]


def test_a_right_password_gives_the_name_and_a_wrong_one_none(directory: Callable[..., Directory]) -> None:
    found = directory()
    assert found.user("ada", PASSWORD) == "ada"
    assert found.user("ada", "not the password") is None
    assert found.user("nosuch", PASSWORD) is None


def test_a_bind_without_a_search_does_the_same(direct: Directory) -> None:
    assert direct.user("ada", PASSWORD) == "ada"
    assert direct.user("ada", "not the password") is None
    assert direct.user("nosuch", PASSWORD) is None


def test_a_search_may_be_anonymous(directory: Callable[..., Directory]) -> None:
    found = directory(bind_dn="", bind_password="", base=f"ou=open,{BASE}")
    assert found.user("eve", PASSWORD) == "eve"
    assert found.user("eve", "not the password") is None


@pytest.mark.parametrize("password", ["", "\0", "\u00ad", "\u200b", " "])
@pytest.mark.parametrize("way", ["search", "direct"])
def test_an_empty_password_and_one_that_would_become_empty_are_refused(
    directory: Callable[..., Directory], direct: Directory, way: str, password: str
) -> None:
    found = directory() if way == "search" else direct
    assert found.user("ada", password) is None


def test_for_an_empty_password_nobody_is_asked() -> None:
    with slapd.listening() as listener:
        found = Directory(urls=[listener.url], user_dn="uid={user}")
        assert found.user("ada", "") is None
        assert found.user("", PASSWORD) is None
        assert found.user("\u00ad", PASSWORD) is None
        assert listener.calls == 0


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_names_in_filters_and_in_dns(
    directory: Callable[..., Directory], direct: Directory, name: str
) -> None:
    for found in (directory(), direct):
        assert found.user(name, PASSWORD) == name
        assert found.user(name, "not the password") is None


@pytest.mark.parametrize(
    "name",
    [
        "*",
        "a*",
        "ad?",
        "ada)(uid=*",
        "*)(objectClass=*",
        "ada,ou=people",
        f"ada,{PEOPLE}",
        "\\61da",
        "ada+sn=x",
        "(ada)",
    ],
)
def test_names_that_would_mean_more_are_nobodys(
    directory: Callable[..., Directory], direct: Directory, name: str
) -> None:
    assert directory().user(name, PASSWORD) is None
    assert direct.user(name, PASSWORD) is None


@pytest.mark.parametrize("name", ["ADA", "Ada", " ada", "ada ", "\uff41da"])
def test_a_user_has_one_name_however_it_is_typed(
    directory: Callable[..., Directory], direct: Directory, name: str
) -> None:
    assert direct.user(name, PASSWORD) == "ada"
    assert directory().user(name, PASSWORD) in {"ada", None}


@pytest.mark.parametrize("name", ["a\nda", "a\0da", "ada\u00ad", "\u202eada"])
def test_names_that_cannot_be_printed_are_nobodys(
    directory: Callable[..., Directory], direct: Directory, name: str
) -> None:
    assert directory().user(name, PASSWORD) is None
    assert direct.user(name, PASSWORD) is None


def test_a_name_that_two_entries_have_is_refused_and_logged(
    directory: Callable[..., Directory], caplog: pytest.LogCaptureFixture
) -> None:
    assert directory().user("twin", PASSWORD) is None
    assert "ldap_ambiguous" in caplog.messages
    assert directory(base=PEOPLE).user("twin", PASSWORD) == "twin"


def test_the_filter_says_who_else_is_no_user(directory: Callable[..., Directory]) -> None:
    assert directory(filter="(sn=x)").user("ada", PASSWORD) == "ada"
    assert directory(filter="(sn=y)").user("ada", PASSWORD) is None


def test_referrals_are_not_followed(directory: Callable[..., Directory], elsewhere: slapd.Listener) -> None:
    found = directory()
    assert found.user("ada", PASSWORD) == "ada"
    assert found.user("nosuch", PASSWORD) is None
    with pytest.raises(Unavailable):
        directory(base=f"ou=elsewhere,{PEOPLE}").user("ada", PASSWORD)
    assert elsewhere.calls == 0


def test_ldaps_and_no_encryption_work_as_well(directory: Callable[..., Directory], server: slapd.Slapd) -> None:
    for changes in ({"urls": [server.tls_url]}, {"start_tls": False}):
        assert directory(**changes).user("ada", PASSWORD) == "ada"
        assert directory(**changes).user("ada", "not the password") is None


@pytest.mark.parametrize("kind", ["url", "tls_url"])
def test_a_server_whose_certificate_another_authority_has_signed_gets_no_password(
    directory: Callable[..., Directory],
    server: slapd.Slapd,
    certificates: slapd.Certificates,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    found = directory(urls=[getattr(server, kind)], ca_file=str(certificates.other))
    with pytest.raises(Unavailable):
        found.user("ada", PASSWORD)
    assert "CERTIFICATE_VERIFY_FAILED" in reasons(caplog)[0]


def test_a_server_whose_certificate_names_another_gets_no_password(
    directory: Callable[..., Directory], server: slapd.Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unavailable):
        directory(urls=[server.misnamed_url]).user("ada", PASSWORD)
    assert "IP address mismatch" in reasons(caplog)[0]


def test_a_server_that_does_not_speak_tls_gets_no_password(
    tmp_path: Path, server: slapd.Slapd, directory: Callable[..., Directory], caplog: pytest.LogCaptureFixture
) -> None:
    plain = slapd.Slapd(tmp_path / "plain", None)
    try:
        with pytest.raises(Unavailable):
            directory(urls=[plain.url]).user("ada", PASSWORD)
        assert "startTLS failed" in reasons(caplog)[0]
        assert directory(urls=[plain.url], start_tls=False).user("ada", PASSWORD) == "ada"
    finally:
        plain.stop()
    assert " BIND " in plain.said.read_text()
    assert plain.said.read_text().count(" BIND dn=") == 4


def test_a_file_of_authorities_that_is_none_is_an_error_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ssl.SSLError):
        Directory(urls=["ldap://127.0.0.1"], ca_file=str(tmp_path / "ca.pem"))


def test_a_service_account_that_is_refused_is_no_wrong_password(
    directory: Callable[..., Directory], caplog: pytest.LogCaptureFixture
) -> None:
    for changes in ({"bind_password": "not the password"}, {"bind_dn": f"cn=nosuch,{BASE}"}):
        with pytest.raises(Unavailable) as error:
            directory(**changes).user("ada", PASSWORD)
        assert SERVICE not in error.value.message
    assert reasons(caplog) == ["Failed: bind_dn was refused: invalidCredentials"] * 2


def test_a_base_that_is_not_there_is_no_wrong_password(
    directory: Callable[..., Directory], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unavailable):
        directory(base="dc=nosuch,dc=org").user("ada", PASSWORD)
    assert reasons(caplog) == ["Failed: the search failed: noSuchObject"]


def test_a_server_that_is_down_is_no_wrong_password_and_another_stands_for_it(
    directory: Callable[..., Directory], server: slapd.Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    down = f"ldap://127.0.0.1:{slapd.free_port()}"
    with pytest.raises(Unavailable):
        directory(urls=[down]).user("ada", PASSWORD)
    assert "refused" in reasons(caplog)[0]
    both = directory(urls=[down, server.url])
    assert both.user("ada", PASSWORD) == "ada"
    assert both.user("ada", "not the password") is None


#: The beginning of a long message.
LONG = bytes([0x30, 0x7F, 0x02, 0x01, 0x01]) + bytes(100)


@pytest.mark.parametrize("drip", [b"", LONG])
@pytest.mark.parametrize("changes", [{}, {"start_tls": False}, {"tls": True}], ids=["StartTLS", "plain", "LDAPS"])
def test_a_server_that_does_not_answer_is_given_up_in_time(drip: bytes, changes: dict[str, Any]) -> None:
    with slapd.listening(drip) as listener:
        url = listener.tls_url if changes.pop("tls", False) else listener.url
        found = Directory(urls=[url], user_dn="uid={user}", timeout=1, **changes)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            found.user("ada", PASSWORD)
        assert time.monotonic() - began < 2.5
        assert listener.calls == 1


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes([0x30, 0x0C, 0x02, 0x01, 0x01, 0x61, 0x07, 0x0A, 0x01]),
        bytes([0x30, 0x03, 0x02, 0x01, 0x01]),
        bytes([0x30, 0x80, 0xFF, 0xFF]) * 20,
    ],
)
def test_a_server_that_talks_nonsense_is_no_wrong_password(said: bytes) -> None:
    with slapd.listening(said, pause=0) as listener:
        found = Directory(urls=[listener.url], user_dn="uid={user}", timeout=1, start_tls=False)
        with pytest.raises(Unavailable):
            found.user("ada", PASSWORD)


def test_slow_servers_do_not_keep_more_than_some_of_the_threads(at_once: Callable[..., list[Any]]) -> None:
    def login() -> str:
        with pytest.raises(Unavailable) as error:
            found.user("ada", PASSWORD)
        return error.value.message

    with slapd.listening() as listener:
        found = Directory(urls=[listener.url], user_dn="uid={user}", timeout=3, start_tls=False)
        said = at_once([login] * 12)
    assert said.count("too many users log in at once") == 4
    assert listener.calls == 8


def test_the_password_of_the_service_account_is_not_shown() -> None:
    assert "service secret" not in repr(Directory(urls=[], bind_password=SERVICE_PASSWORD))


def test_every_letter_with_a_meaning_is_escaped() -> None:
    assert escaped("a-b_c.9") == "a-b_c.9"
    assert escaped(' #,+"\\<>;=*()\0/@\n') == "".join(f"\\{ord(each):02x}" for each in ' #,+"\\<>;=*()\0/@\n')
    assert escaped("ä") == "\\c3\\a4"


def test_names_are_folded() -> None:
    assert {folded(name) for name in ("Ada  B", " ada b ", "\uff21DA B")} == {"ada b"}


def test_a_server_is_well_when_the_account_that_searches_can_log_in(
    directory: Callable[..., Directory], server: slapd.Slapd
) -> None:
    nobody = "ldap://127.0.0.1:1"
    assert directory().troubles() == {server.url: None}
    assert directory(bind_dn="", bind_password="").troubles() == {server.url: None}
    told = directory(urls=[nobody, server.url], bind_password="not the password").troubles()
    assert "refused" in str(told[nobody])
    assert told[server.url] == "bind_dn was refused: invalidCredentials"


def test_a_server_whose_certificate_is_not_good_is_not_well(
    directory: Callable[..., Directory], server: slapd.Slapd
) -> None:
    told = directory(ca_file="").troubles()[server.url]
    assert "certificate" in str(told)
