"""Making secrets and hashing them."""

import pytest

from labctl.tokens import secrets


def test_a_password_fits_its_own_hash_and_no_other() -> None:
    first, second = secrets.hash_password("one ä"), secrets.hash_password("one ä")
    assert first != second
    for hashed in (first, second):
        assert secrets.password_fits(hashed, "one ä")
        assert not secrets.password_fits(hashed, "one a")


@pytest.mark.parametrize("hashed", [None, "", "plain", "$argon2id$broken"])
def test_nothing_fits_what_is_no_hash(hashed: str | None) -> None:
    for password in ("", "plain", "None"):
        assert not secrets.password_fits(hashed, password)


def test_new_secrets_look_like_tokens_and_passwords_do_not() -> None:
    assert all(secrets.looks_like_token(secrets.new_secret()) for _ in range(20))
    token = secrets.new_secret()
    for text in ("", token[:-1], token + "a", "z" + token[1:], token.upper(), "1" + token[1:], token + "\n", "é" * 32):
        assert not secrets.looks_like_token(text)
