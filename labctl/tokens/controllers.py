"""``/api/token``: users make and drop their own tokens, by user and password."""

from collections.abc import Callable
from typing import Any

from labctl.db import Reader, reading, transaction
from labctl.errors import NotFound, Unauthenticated
from labctl.http.resource import Mount, Request, Resource
from labctl.settings import Settings
from labctl.tokens import service, wire

#: Gives the short names of the running VMs that were taken with a token, by the token's id.
VMsOfToken = Callable[[Reader, int], list[str]]


class TokensController(Resource):
    """The tokens of whoever asks."""

    def __init__(self, settings: Settings, mount: Mount, vms_of_token: VMsOfToken) -> None:
        """Take what applies to this mount; what VMs a token has is known elsewhere."""
        self.settings = settings
        self.mount = mount
        self.vms_of_token = vms_of_token

    def item(self, segment: str) -> Resource | None:
        """One token, by its secret or its id."""
        return TokenController(segment, self.vms_of_token)

    def get(self, request: Request) -> Any:
        """List them, by their ids; it is 404 if there are none, which clients take for an empty list."""
        user = _with_password(request)
        with reading() as session:
            tokens = service.tokens_of(session, user.user_id)
        if not tokens:
            raise NotFound("there are no tokens")
        return wire.tokens_to_wire(tokens)

    def post(self, request: Request) -> Any:
        """Make one and answer its secret, this once."""
        user = _with_password(request)
        with transaction(request.actor()) as session:
            secret = service.create_token(session, user.name, most=service.MOST_TOKENS)
        return {"ok": True, "token": secret}


class TokenController(Resource):
    """One token."""

    def __init__(self, token: str, vms_of_token: VMsOfToken) -> None:
        """Note its secret or its id."""
        self.token = token
        self.vms_of_token = vms_of_token

    def get(self, request: Request) -> Any:
        """Tell whose it is: to everybody who shows the secret, by its id to its user and to admins."""
        asking = request.identity if isinstance(request.identity, service.Identity) else None
        with reading() as session:
            token = service.find_token(session, self.token, asking)
            running = self.vms_of_token(session, token.id)
        return wire.token_to_wire(self.token, token, running)

    def delete(self, request: Request) -> Any:
        """Make it worthless: a user their own tokens, an admin all; for one that is not there, clients know 401."""
        user = _with_password(request)
        try:
            with transaction(request.actor()) as session:
                service.revoke_token(session, self.token, of=None if user.admin else user.user_id)
        except NotFound as error:
            raise Unauthenticated(error.message) from error
        return {"ok": True}


def _with_password(request: Request) -> service.Identity:
    """Give the user that asks; raises :class:`Unauthenticated` if they did not show a password: a token is not enough.

    Otherwise whoever finds a token could keep others of the same user for themselves.
    """
    identity = request.identity
    if not isinstance(identity, service.Identity) or identity.token_id is not None:
        raise Unauthenticated("the user and password of a labctl user are required")
    return identity
