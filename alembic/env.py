"""Alembic's environment: the metadata of every domain, and one lock so that two upgrades never meet."""

import os

from sqlalchemy import create_engine, pool, text

from alembic import context
from labctl import models
from labctl.db import driver_url

config = context.config
#: Any number will do, as long as nothing else in labctl locks it.
UPGRADE_LOCK = 7_220_001


def include_object(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Leave the task queue's tables, which the library brings as SQL text, out of comparisons."""
    return not (reflected and compare_to is None and (name or "").startswith("procrastinate_"))


def database_url() -> str:
    """Give the URL of alembic.ini, or that of the environment, which ``alembic -x`` and containers set."""
    url = config.get_main_option("sqlalchemy.url") or os.environ.get("LABCTL_DATABASE_URL", "")
    return driver_url(url)


if context.is_offline_mode():
    context.configure(url=database_url(), target_metadata=models.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(database_url(), poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=models.metadata,
            include_object=include_object,
            compare_server_default=True,
        )
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
            context.run_migrations()
