"""Secrets: making them, and hashing them for keeps."""

import hashlib
import re
import secrets
import string
import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_FIRST = string.ascii_lowercase[:-1]
_REST = string.ascii_lowercase + string.digits
_TOKEN = re.compile(r"[a-y][a-z0-9]{31}")

# 19 MiB and two passes for each check: with the library's 64 MiB, a few logins at once would not fit a web worker.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_places = threading.BoundedSemaphore(2)
#: Checked when there is no such user, so that the answer takes as long as for one there is.
_NOBODY = _hasher.hash(secrets.token_hex())


def new_secret() -> str:
    """Make a token: 32 characters of a-z and 0-9, the first from a to y, 165 bits of the system's randomness."""
    return secrets.choice(_FIRST) + "".join(secrets.choice(_REST) for _ in range(31))


def looks_like_token(text: str) -> bool:
    """Tell whether a text has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def digest(secret: str) -> bytes:
    """Hash a token for the database."""
    return hashlib.sha256(secret.encode()).digest()


def hash_password(password: str) -> str:
    """Hash a password for the database."""
    with _places:
        return _hasher.hash(password)


def password_fits(password_hash: str | None, password: str) -> bool:
    """Check a password, in the same time whether or not there is a hash to check it against."""
    with _places:
        try:
            fits = _hasher.verify(password_hash or _NOBODY, password)
        except (VerificationError, InvalidHashError):
            return False
    return fits and password_hash is not None
