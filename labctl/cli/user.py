"""``labctl user``: who may log in."""

import sys

import click
from tabulate import tabulate

from labctl.db import configure, transaction
from labctl.settings import ANONYMOUS, load
from labctl.tokens import service


@click.group()
def user() -> None:
    """Add, list and remove users."""
    configure(load().require_database())


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))


@user.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="May do everything, and manage users and tokens.")
@click.option("--right", "rights", multiple=True, type=click.Choice(sorted(ANONYMOUS)), help="A tree; may be repeated.")
@click.option("--no-password", is_flag=True, help="The user has tokens only.")
@click.option("--password-stdin", is_flag=True, help="Read the password from the first line of standard input.")
def add(name: str, admin: bool, rights: tuple[str, ...], no_password: bool, password_stdin: bool) -> None:
    """Add the user NAME and ask for a password."""
    password = None if no_password else _password(password_stdin)
    with transaction() as session:
        service.add_user(session, name, password=password, admin=admin, rights=rights)
    click.echo(f"added {name}")


@user.command("list")
def list_() -> None:
    """List the users."""
    with transaction() as session:
        rows = [
            (found.name, "admin" if found.admin else ", ".join(found.rights) or "-", f"{found.created:%Y-%m-%d %H:%M}")
            for found in service.list_users(session)
        ]
    click.echo(tabulate(rows, headers=("user", "rights", "created (UTC)")))


@user.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the user NAME and all of their tokens."""
    with transaction() as session:
        service.remove_user(session, name)
    click.echo(f"removed {name}")


@user.command()
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from the first line of standard input.")
def password(name: str, password_stdin: bool) -> None:
    """Give the user NAME another password."""
    wanted = _password(password_stdin)
    with transaction() as session:
        service.set_password(session, name, wanted)
    click.echo(f"changed the password of {name}")
