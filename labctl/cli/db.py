"""``labctl db``: the schema."""

import click

from labctl import migrations
from labctl.settings import load


@click.group()
def db() -> None:
    """Bring the database's schema up to date."""


@db.command()
@click.argument("revision", default="head")
def upgrade(revision: str) -> None:
    """Bring the schema to REVISION (default: the newest). Safe to run twice, and on several machines at once."""
    migrations.upgrade(load().require_database(), revision)
    click.echo(f"the schema is at {migrations.head() if revision == 'head' else revision}")


@db.command()
@click.argument("revision")
def downgrade(revision: str) -> None:
    """Take the schema back to REVISION; -1 is one step. What newer tables hold is lost."""
    migrations.downgrade(load().require_database(), revision)
    click.echo(f"the schema is at {revision}")
