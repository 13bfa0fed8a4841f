"""Asking other hosts over HTTP: an event loop that leaves no connection open, and what really went wrong."""

import asyncio
from typing import Any


class Loop(asyncio.SelectorEventLoop):
    """An event loop that knows its connections: httpcore forgets those whose TLS handshake is called off."""

    def __init__(self) -> None:
        """Begin without any."""
        super().__init__()
        self.connections: list[asyncio.Transport] = []

    async def create_connection(self, *arguments: Any, **options: Any) -> Any:
        """Connect, and remember it."""
        transport, protocol = await super().create_connection(*arguments, **options)
        self.connections.append(transport)
        return transport, protocol


def innermost(error: BaseException) -> BaseException:
    """Unwrap what the system said: the libraries have put layers around it, and all addresses of a name in a group."""
    below = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__
    if below is None and type(error).__module__.startswith("httpcore"):
        # It raises its own errors "from None".
        below = error.__context__
    return error if below is None else innermost(below)
