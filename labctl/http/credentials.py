"""What a request claims to be: a user with a password, or the bearer of a token."""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Protocol

from webob import Request

from labctl.errors import Unauthenticated


@dataclass(frozen=True, slots=True)
class Claim:
    """A credential as it was sent: ``user`` is None for a bare token; ``secret`` is a password or a token."""

    user: str | None
    secret: str = field(repr=False)
    #: The client's.
    address: str = "-"


class Identity(Protocol):
    """Who a claim turned out to be."""

    @property
    def name(self) -> str:
        """The user's name."""

    def may(self, tree: str) -> bool:
        """Tell whether this user (by this token) has the right to a tree."""


def claim_of(request: Request) -> Claim | None:
    """Read Basic, Bearer or X-AUTH-TOKEN; None if the request has none, :class:`Unauthenticated` if it is malformed."""
    if token := request.environ.get("HTTP_X_AUTH_TOKEN"):
        return Claim(None, token)
    header = request.environ.get("HTTP_AUTHORIZATION")
    if not header:
        return None
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return Claim(None, value)
    if scheme.lower() == "basic":
        try:
            user, colon, secret = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Unauthenticated("the Authorization header is not valid Basic") from error
        if colon:
            return Claim(user, secret)
    raise Unauthenticated("the Authorization header must be Basic or Bearer")
