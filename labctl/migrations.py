"""The schema's revisions: bring a database to the newest one, and tell which that is."""

from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from alembic import command
from labctl import db

#: labctl runs from its checkout; the revisions lie beside the package.
SCRIPTS = Path(__file__).resolve().parent.parent / "alembic"


def config(database_url: str = "") -> Config:
    """Make Alembic's configuration for a database."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    # Alembic's options go through configparser, where % begins an interpolation.
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the database to ``revision``; two at once are safe, the second finds nothing to do."""
    command.upgrade(config(db.driver_url(database_url)), revision)


def downgrade(database_url: str, revision: str) -> None:
    """Take the database back to ``revision``."""
    command.downgrade(config(db.driver_url(database_url)), revision)


@cache
def head() -> str | None:
    """Name the newest revision."""
    return ScriptDirectory.from_config(config()).get_current_head()


def trouble(revision: str | None) -> str | None:
    """Say what is to be done about a database at a revision, None if it is the newest."""
    if revision == head():
        return None
    return (
        f"the schema is at {revision or 'nothing'}, this labctl needs {head()}: "
        "run labctl db upgrade, or a newer labctl"
    )
