"""The two health endpoints: both are well when the database answers and its schema is current."""

from typing import Any

from webob import Response

from labctl import db, migrations
from labctl.errors import Unavailable
from labctl.http.render import Answer, dumps
from labctl.http.resource import Request, Resource


def trouble() -> str | None:
    """Say why labctl cannot work, None if it can."""
    try:
        with db.reading() as session:
            revision = db.ping(session)
    except Unavailable as error:
        return error.message
    return migrations.trouble(revision)


class HealthController(Resource):
    """``/_health``."""

    def get(self, request: Request) -> Any:
        """Answer 204, or 503 with the reason."""
        reason = trouble()
        return None if reason is None else _ill({"message": reason})


class HealthcheckController(Resource):
    """``/healthcheck``."""

    def get(self, request: Request) -> Any:
        """Answer ``{"ok": true}``, or 503 with the reason."""
        reason = trouble()
        return {"ok": True} if reason is None else _ill({"ok": False, "message": reason})


def _ill(body: dict[str, Any]) -> Response:
    return Answer(status=503, body=dumps(body), headerlist=[("Content-Type", "application/json"), ("Retry-After", "5")])
