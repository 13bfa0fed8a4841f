"""The WSGI application: Pecan's object, made from the settings, with the tree of labctl.root below it."""

from typing import Any

from pecan.core import ExplicitPecan, RoutingState

from labctl import db, queue, root
from labctl.http import render
from labctl.http.credentials import Claim, Identity
from labctl.http.hooks import RequestHook
from labctl.http.resource import Request, Resource, locate
from labctl.remote import config as remote
from labctl.settings import Settings, SettingsError
from labctl.tokens.login import Login
from labctl.vms import config as vms


class Application(ExplicitPecan):
    """Pecan with labctl's routing: a path leads to one :class:`Resource`, its method gets the request and nothing else.

    Pecan's own search among attributes, its reading of bodies into keyword arguments, and its choice of a renderer by
    Accept and file extension are left out: each of them answers some request wrongly.
    """

    root: Resource

    def find_controller(self, state: RoutingState) -> tuple[Resource, list[Any], dict[str, Any]]:
        """Route the request and check its credentials."""
        self.handle_hooks(self.hooks, "on_route", state)
        resource = locate(self.root, state.request)
        handler = resource.handler(state.request.method)
        state.controller = resource
        self.handle_hooks(self.hooks, "before", state)
        state.request.environ["labctl.handler"] = handler
        return resource, [], {}

    def invoke_controller(self, controller: Resource, args: Any, kwargs: Any, state: RoutingState) -> None:
        """Let the resource answer."""
        request = state.request
        state.response = render.response(request.environ["labctl.handler"](request))

    def _handle_empty_response_body(self, state: RoutingState) -> None:
        # Pecan looks into a stream to see whether it is empty, and then it is never closed when the client leaves.
        pass


def make_app(settings: Settings) -> Application:
    """Make the application; :func:`labctl.db.configure` (or a test) has pointed the process at its database."""
    try:
        login = Login(settings)
    except OSError as error:
        raise SettingsError(f"ldap_ca_file: {error}") from error

    def authenticate(claim: Claim) -> Identity:
        return login(claim.user, claim.secret, claim.address)

    return Application(
        root.tree(settings),
        hooks=[RequestHook(authenticate, settings.anonymous)],
        request_cls=Request,
        force_canonical=False,
        guess_content_type_from_ext=False,
        use_context_locals=False,
    )


def serve(settings: Settings) -> Application:
    """Point this process at its database and task queue, and make its application."""
    if mistakes := vms.check(settings) + remote.fatal(settings):
        raise SettingsError("\n".join(mistakes))
    engine = db.configure(settings.require_database(), pool_size=settings.database_pool_size)
    queue.configure(engine)
    return make_app(settings)
