"""``labctl up``: run everything."""

import os
import signal
import sys
from typing import NoReturn

import click

from labctl import logs, processes, settings


@click.command()
@click.option(
    "--with-parent", is_flag=True, help="Stop when the process that started this one ends, in whatever way; for make."
)
def up(with_parent: bool) -> None:
    """Run labctl: its database, its web server and a worker, until Ctrl-C or SIGTERM.

    Everything is kept in the directory LABCTL_HOME (./.labctl): the database, unless LABCTL_DATABASE_URL names
    another one, and admin.token, the token of the first admin, made at the first start. The service listens on
    LABCTL_HOST (127.0.0.1) port LABCTL_PORT (8080). A process that crashes is started again.
    """
    if sys.platform != "linux":
        _fail("labctl up needs Linux; elsewhere run gunicorn and labctl worker with a database of your own")
    from labctl.up import supervisor

    try:
        wanted = settings.load()
    except settings.SettingsError as error:
        _fail("; ".join(str(error).splitlines()))
    logs.setup(wanted)
    if with_parent:
        processes.die_with_parent(signal.SIGTERM, os.getppid())
    try:
        supervisor.run(wanted)
    except supervisor.UpError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    click.echo(f"labctl up: {message}", err=True)
    sys.exit(1)
