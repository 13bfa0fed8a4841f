"""The revisions of the schema: they build what the tables of the code say, and every one can be taken back."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from procrastinate.schema import SchemaManager
from sqlalchemy import Engine, create_engine, make_url, text
from webtest import TestApp

from alembic import command
from labctl import app as application
from labctl import db, migrations, models
from labctl.settings import Settings

#: Revisions, the oldest first.
REVISIONS = [each.revision for each in ScriptDirectory.from_config(migrations.config()).walk_revisions()][::-1]

#: What there is in a schema, each thing as one text; the order of a table's columns does not matter.
SCHEMA = """
SELECT 'table ' || c.relname || ' ' || coalesce(array_to_string(c.reloptions, ','), '')
  FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'S')
UNION ALL
SELECT 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END || ' ' || a.attgenerated::text || a.attidentity::text
       || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'm') AND a.attnum > 0
    AND NOT a.attisdropped
UNION ALL
SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
UNION ALL
SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT 'function ' || pg_get_functiondef(oid)
  FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')
UNION ALL
SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
  WHERE c.relnamespace = 'public'::regnamespace AND NOT t.tgisinternal
UNION ALL
SELECT 'type ' || t.typname || ' ' || coalesce((SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder)
       FROM pg_enum WHERE enumtypid = t.oid), '')
  FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
  WHERE t.typnamespace = 'public'::regnamespace AND (t.typtype = 'e' OR (t.typtype = 'c' AND c.relkind = 'c'))
UNION ALL
SELECT 'extension ' || extname FROM pg_extension WHERE extname <> 'plpgsql'
"""
#: Alembic's own table, which stays.
ALEMBIC = "alembic_version"


@pytest.fixture
def new_database(database_url: str, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Make empty databases beside labctl's; its owner may (in production, the schema's owner need not)."""
    admin = create_engine(db.driver_url(database_url), isolation_level="AUTOCOMMIT")
    made: list[str] = []

    def make() -> str:
        name = f"labctl_migrations_{os.getpid()}_{len(made)}"
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
        made.append(name)
        return make_url(database_url).set(database=name).render_as_string(hide_password=False)

    yield make
    with admin.connect() as connection:
        for name in made:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def empty(new_database: Callable[[], str]) -> str:
    """The URL of an empty database."""
    return new_database()


def schema(url: str) -> list[str]:
    """Describe a database's schema, without Alembic's table."""
    engine = create_engine(db.driver_url(url))
    with engine.connect() as connection:
        found = sorted(thing for (thing,) in connection.execute(text(SCHEMA)) if ALEMBIC not in thing)
    engine.dispose()
    return found


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = create_engine(db.driver_url(url))
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(statement))]
    engine.dispose()
    return found


def test_there_is_one_line_of_revisions_without_branches() -> None:
    scripts = ScriptDirectory.from_config(migrations.config())

    assert len(scripts.get_bases()) == len(scripts.get_heads()) == 1
    assert migrations.head() == REVISIONS[-1]


def test_an_upgraded_database_is_what_the_tables_of_the_code_say_by_alembics_comparison(empty: str) -> None:
    migrations.upgrade(empty)

    command.check(migrations.config(db.driver_url(empty)))


def test_an_upgraded_database_is_what_the_tables_of_the_code_say_to_the_last_function(
    new_database: Callable[[], str],
) -> None:
    upgraded, created = new_database(), new_database()
    migrations.upgrade(upgraded)
    engine = create_engine(db.driver_url(created))
    models.metadata.create_all(engine)
    engine.dispose()

    assert [thing for thing in schema(upgraded) if "procrastinate_" not in thing] == schema(created)


def test_the_task_queues_tables_are_those_of_the_installed_library(
    new_database: Callable[[], str],
) -> None:
    upgraded, created = new_database(), new_database()
    migrations.upgrade(upgraded)
    engine = create_engine(db.driver_url(created))
    with engine.begin() as connection, connection.connection.cursor() as cursor:
        cursor.execute(SchemaManager.get_schema())
    engine.dispose()

    assert [thing for thing in schema(upgraded) if "procrastinate_" in thing] == schema(created)


@pytest.mark.parametrize("revision", REVISIONS)
def test_one_step_down_and_up_again_changes_nothing(empty: str, revision: str) -> None:
    below = REVISIONS[REVISIONS.index(revision) - 1] if revision != REVISIONS[0] else "base"
    migrations.upgrade(empty, below) if below != "base" else None
    before = schema(empty)
    migrations.upgrade(empty, revision)
    after = schema(empty)

    migrations.downgrade(empty, below)
    assert schema(empty) == before

    migrations.upgrade(empty, revision)
    assert schema(empty) == after
    assert before != after


def test_back_to_the_beginning_nothing_is_left(empty: str) -> None:
    before = schema(empty)
    migrations.upgrade(empty)
    assert schema(empty) != before

    migrations.downgrade(empty, "base")

    assert schema(empty) == before == []
    assert rows(empty, f"SELECT * FROM {ALEMBIC}") == []


def test_upgrades_at_once_do_not_disturb_each_other(empty: str) -> None:
    environ = {**os.environ, "LABCTL_DATABASE_URL": empty, "LABCTL_CONFIG": ""}
    upgrades = [
        subprocess.Popen(
            [sys.executable, "-m", "labctl.cli.main", "db", "upgrade"],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(4)
    ]
    said = [upgrade.communicate(timeout=60)[0] for upgrade in upgrades]

    assert [upgrade.returncode for upgrade in upgrades] == [0] * 4, said
    assert all(f"the schema is at {REVISIONS[-1]}" in each for each in said)
    assert rows(empty, f"SELECT version_num FROM {ALEMBIC}") == [(REVISIONS[-1],)]


def test_an_upgrade_of_a_current_database_changes_nothing(empty: str) -> None:
    migrations.upgrade(empty)
    before = schema(empty)

    migrations.upgrade(empty)

    assert schema(empty) == before


def test_revisions_can_be_written_out_as_sql_for_a_database_administrator(
    empty: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = migrations.config(db.driver_url(empty))
    command.upgrade(config, f"{REVISIONS[0]}:head", sql=True)

    assert "CREATE TABLE runs" in capsys.readouterr().out


def test_alembic_ini_in_names_the_revisions(tmp_path: Path) -> None:
    root = migrations.SCRIPTS.parent
    ini = tmp_path / "alembic.ini"
    ini.write_text((root / "alembic.ini.in").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(ini), "heads"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.split()[0] == REVISIONS[-1], done.stderr


@pytest.fixture
def health(empty: str) -> Iterator[tuple[str, TestApp]]:
    """The application over a database without a schema."""
    engine: Engine = db.configure(empty, pool_size=1)
    yield empty, TestApp(application.make_app(Settings(database_url=empty)))
    engine.dispose()


def answers(app: TestApp) -> list[tuple[int, str]]:
    found = []
    for path in ("/_health", "/healthcheck"):
        answer = app.get(path, expect_errors=True)
        found.append((answer.status_int, answer.json["message"] if answer.status_int == 503 else answer.text))
    return found


def advice(there: str) -> str:
    return f"the schema is at {there}, this labctl needs {REVISIONS[-1]}: run labctl db upgrade, or a newer labctl"


def test_health_is_503_and_says_what_to_do_without_a_schema(health: tuple[str, TestApp]) -> None:
    expected = (503, advice("nothing"))

    assert answers(health[1]) == [expected, expected]


def test_health_is_503_and_says_what_to_do_while_the_schema_is_behind(health: tuple[str, TestApp]) -> None:
    url, app = health
    migrations.upgrade(url)
    assert answers(app) == [(204, ""), (200, '{"ok":true}')]

    migrations.downgrade(url, "-1")

    expected = (503, advice(REVISIONS[-2]))
    assert answers(app) == [expected, expected]
