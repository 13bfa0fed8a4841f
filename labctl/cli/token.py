"""``labctl token``: secrets that stand for a user."""

from datetime import timedelta

import click
from tabulate import tabulate

from labctl import clock
from labctl.db import configure, transaction
from labctl.settings import ANONYMOUS, load
from labctl.tokens import service


@click.group()
def token() -> None:
    """Create, list and revoke tokens."""
    configure(load().require_database())


@token.command()
@click.argument("user")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(sorted(ANONYMOUS)), help="Only this tree; repeatable."
)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Days until it expires (default: never).")
def create(user: str, scopes: tuple[str, ...], days: float | None) -> None:
    """Make a token for USER and print its secret, this once."""
    expires = clock.now() + timedelta(days=days) if days is not None else None
    with transaction() as session:
        secret = service.create_token(session, user, scopes=scopes or None, expires=expires)
    click.echo(secret)


@token.command("list")
@click.argument("user", required=False)
def list_(user: str | None) -> None:
    """List the tokens, or those of USER, by their ids."""
    with transaction() as session:
        rows = [
            (
                found.public_id,
                found.owner.name,
                "all" if found.scopes is None else ", ".join(found.scopes),
                f"{found.created:%Y-%m-%d %H:%M}",
                f"{found.last_used:%Y-%m-%d %H:%M}" if found.last_used else "never",
                f"{found.expires:%Y-%m-%d %H:%M}" if found.expires else "never",
            )
            for found in service.list_tokens(session, user)
        ]
    click.echo(tabulate(rows, headers=("id", "user", "scopes", "created (UTC)", "last used", "expires")))


@token.command()
@click.argument("token")
def revoke(token: str) -> None:
    """Revoke TOKEN, given by its id or its secret."""
    with transaction() as session:
        service.revoke_token(session, token)
    click.echo("revoked")
