"""``labctl worker``: background tasks."""

import click

from labctl import logs
from labctl.settings import load


@click.command()
def worker() -> None:
    """Run background tasks until SIGTERM or Ctrl-C.

    Any number of workers may run, on several machines, against one database.
    """
    from labctl.worker import run

    settings = load()
    logs.setup(settings)
    run(settings)
