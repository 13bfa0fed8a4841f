"""The task queue's own tables: procrastinate 3.10.0, its schema as it ships."""

from pathlib import Path

from alembic import op

revision = "20261121_queue"
down_revision = None
branch_labels = None
depends_on = None

_SCHEMA = Path(__file__).parent.parent / "sql" / "procrastinate-3.10.0.sql"


def upgrade() -> None:
    # Through the driver itself: SQLAlchemy's text trips over the colons and percent signs in it.
    with op.get_bind().connection.cursor() as cursor:
        cursor.execute(_SCHEMA.read_text())


def downgrade() -> None:
    for kind, name in (
        ("TABLE", "procrastinate_events"),
        ("TABLE", "procrastinate_periodic_defers"),
        ("TABLE", "procrastinate_jobs"),
        ("TABLE", "procrastinate_workers"),
    ):
        op.execute(f"DROP {kind} IF EXISTS {name} CASCADE")
    # Functions and types are named by the library; drop whatever is left of them.
    op.execute(
        """
        DO $$ DECLARE found record; BEGIN
            FOR found IN SELECT oid::regprocedure AS name FROM pg_proc WHERE proname LIKE 'procrastinate\\_%' LOOP
                EXECUTE 'DROP FUNCTION ' || found.name || ' CASCADE';
            END LOOP;
            FOR found IN SELECT oid::regtype AS name FROM pg_type
                WHERE typname LIKE 'procrastinate\\_%' AND typtype IN ('e', 'c') LOOP
                EXECUTE 'DROP TYPE ' || found.name || ' CASCADE';
            END LOOP;
        END $$
        """
    )
