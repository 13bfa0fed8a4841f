"""gunicorn's configuration, from labctl's settings: ``gunicorn -c python:labctl.gunicorn_config labctl.wsgi:app``."""

import ctypes
import os
import signal
from typing import Any

from labctl import processes as _processes
from labctl import settings as _settings

_wanted = _settings.load()
#: Of malloc.h.
_M_ARENA_MAX = -8

bind = f"[{_wanted.host}]:{_wanted.port}" if ":" in _wanted.host else f"{_wanted.host}:{_wanted.port}"
worker_class = "gthread"
workers = _wanted.web_workers
# Requests that wait for news or follow operations hold a thread each, and must not keep others from theirs.
threads = _wanted.web_threads + _wanted.max_waiters + _wanted.remote_max_followers
# Connections are cheap while they are idle, and those that hold a thread are none of a browser's that it keeps; with
# the default of 1000, one process takes all that are kept alive.
worker_connections = 80 + threads
keepalive = 5
limit_request_line = 8190
# By default a local client may set SCRIPT_NAME by a header, and with it what the log says was asked for.
forwarder_headers = ""
timeout = 60
graceful_timeout = 30
loglevel = _wanted.log_level.lower()
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "labctl": {"()": f"labctl.logs.{'JSONFormatter' if _wanted.log_format == 'json' else 'TextFormatter'}"}
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "labctl"}},
    # Until the application sets up its own; importing it is not worth a line.
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {
        "gunicorn.error": {"level": _wanted.log_level, "handlers": ["stderr"], "propagate": False},
        "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
    },
}
# It would lie in the home directory of whoever runs gunicorn, the same for every instance.
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Import the application's modules before the workers are forked, so that a new worker is there at once.

    Each makes its own application, with its own connections, which preload_app would not give them. To run other
    code, restart gunicorn: a reload (HUP) reads the settings again, not the modules.
    """
    import labctl.app  # noqa: F401


def when_ready(server: Any) -> None:
    """Let a signal that meets a worker on its way from the fork to its own handlers end it: it inherits the master's.

    Those only make a note for a loop that the worker never runs, and the master would wait for it in vain.
    """
    master = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != master:
            os._exit(0)
        server.signal(number, frame)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, handle)


def post_fork(server: Any, worker: Any) -> None:
    """Let a worker finish its requests, but for streams, and end when the master was killed."""
    from labctl.http import streams

    streams.end_when(lambda: not worker.alive)
    _processes.die_with_parent(signal.SIGTERM, worker.ppid)
    # Each of many threads would get a heap of its own and keep it: a third more memory for nothing.
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def worker_int(worker: Any) -> None:
    """End at once when a quick end is asked for: Python would wait for the threads, which may wait for clients."""
    os._exit(0)


def worker_exit(server: Any, worker: Any) -> None:
    """End an orphan whose grace is over; no master is left to kill it when a thread does not end."""
    if os.getpid() == worker.pid and os.getppid() != worker.ppid:
        os._exit(0)
