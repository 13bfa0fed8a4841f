"""Runs, jobs, queues, machines, users, tokens, events."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261121_lab"
down_revision = "20261121_queue"
branch_labels = None
depends_on = None

_FUNCTIONS = """
CREATE OR REPLACE FUNCTION labctl_run_document(
    name text, path text, user_name text, status text, queued int, pass int, running int, waiting int, fail int,
    dead int, unknown int, total int, posted timestamptz, scheduled timestamptz, started timestamptz,
    updated timestamptz, branch text, suite text, machine_type text, sha1 text, priority int, flavor text
) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE form CONSTANT text := 'YYYY-MM-DD HH24:MI:SS.US';
BEGIN
    RETURN '{"name":' || to_json(name) || ',"href":"' || chr(1) || '/' || path || '/","user":' || to_json(user_name)
        || ',"status":"' || status || '","results":{"queued":' || queued || ',"pass":' || pass
        || ',"running":' || running || ',"waiting":' || waiting || ',"fail":' || fail || ',"dead":' || dead
        || ',"unknown":' || unknown || ',"total":' || total
        || ',"sha1":' || CASE total WHEN 0 THEN '"none"' ELSE coalesce(to_json(sha1)::text, 'null') END
        || ',"flavor":' || CASE total WHEN 0 THEN '"none"' ELSE coalesce(to_json(flavor)::text, 'null') END
        || '},"jobs_count":' || total
        || ',"posted":"' || replace(to_char(posted AT TIME ZONE 'UTC', form), '.000000', '')
        || '","scheduled":"' || replace(to_char(scheduled AT TIME ZONE 'UTC', form), '.000000', '')
        || '","started":'
        || coalesce('"' || replace(to_char(started AT TIME ZONE 'UTC', form), '.000000', '') || '"', 'null')
        || ',"updated":'
        || coalesce('"' || replace(to_char(updated AT TIME ZONE 'UTC', form), '.000000', '') || '"', 'null')
        || ',"branch":' || to_json(branch) || ',"suite":' || to_json(suite)
        || ',"machine_type":' || to_json(machine_type) || ',"sha1":' || coalesce(to_json(sha1)::text, 'null')
        || ',"priority":' || coalesce(priority::text, 'null')
        || ',"flavor":' || coalesce(to_json(flavor)::text, 'null') || '}';
END $$;
CREATE OR REPLACE FUNCTION labctl_machine_document(
    name text, description text, up bool, machine_type text, is_vm bool, vm_host text, os_type text, os_version text,
    arch text, locked bool, locked_since timestamptz, locked_by text, mac_address text, ssh_pub_key text
) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN json_build_object(
        'name', name, 'description', description, 'up', up, 'machine_type', machine_type, 'is_vm', is_vm,
        'vm_host', vm_host, 'os_type', os_type, 'os_version', os_version, 'arch', arch, 'locked', locked,
        'locked_since', replace(to_char(locked_since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '.000000', ''),
        'locked_by', locked_by, 'mac_address', mac_address, 'ssh_pub_key', ssh_pub_key
    )::text;
END $$
"""


def upgrade() -> None:
    op.execute(_FUNCTIONS)
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
    )
    op.create_index("ix_events_kind_seq", "events", ["kind", "seq"], unique=False)
    op.create_index("ix_events_subject_seq", "events", ["subject", "seq"], unique=False)
    op.create_table(
        "machines",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("up", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("machine_type", sa.String(length=255), nullable=True),
        sa.Column("is_vm", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("vm_host", sa.String(length=255), nullable=True),
        sa.Column("os_type", sa.String(length=255), nullable=True),
        sa.Column("os_version", sa.String(length=255), nullable=True),
        sa.Column("arch", sa.String(length=255), nullable=True),
        sa.Column("locked", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("locked_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("locked_by", sa.String(length=255), nullable=True),
        sa.Column("mac_address", sa.String(length=255), nullable=True),
        sa.Column("ssh_pub_key", sa.Text(), nullable=True),
        sa.Column(
            "document",
            sa.Text(),
            sa.Computed(
                "labctl_machine_document(name, description, up, machine_type, is_vm, vm_host, os_type, os_version,"
                " arch, locked, locked_since, locked_by, mac_address, ssh_pub_key)",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.CheckConstraint("locked = (locked_by IS NOT NULL)", name=op.f("ck_machines_locked_by_somebody")),
        sa.ForeignKeyConstraint(["vm_host"], ["machines.name"], name="fk_machines_vm_host", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_machines"),
        sa.UniqueConstraint("name", name="uq_machines_name"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "ix_machines_free",
        "machines",
        ["machine_type", "id"],
        unique=False,
        postgresql_where=sa.text("up AND NOT locked"),
    )
    op.create_index("ix_machines_machine_type", "machines", ["machine_type"], unique=False)
    op.create_index("ix_machines_vm_host", "machines", ["vm_host"], unique=False)
    op.create_table(
        "queues",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("paused_by", sa.String(length=255), nullable=True),
        sa.Column("paused_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_queues"),
        sa.UniqueConstraint("name", name="uq_queues_name"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("user_name", sa.Text(), server_default="", nullable=False),
        sa.Column("suite", sa.Text(), server_default="", nullable=False),
        sa.Column("branch", sa.Text(), server_default="", nullable=False),
        sa.Column("machine_type", sa.Text(), server_default="", nullable=False),
        sa.Column("sha1", sa.Text(), nullable=True),
        sa.Column("flavor", sa.Text(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=True),
        sa.Column("posted", sa.DateTime(timezone=True), nullable=False),
        sa.Column("scheduled", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=True),
        sa.Column("queued", sa.Integer(), server_default="0", nullable=False),
        sa.Column("waiting", sa.Integer(), server_default="0", nullable=False),
        sa.Column("running", sa.Integer(), server_default="0", nullable=False),
        sa.Column("pass", sa.Integer(), server_default="0", nullable=False),
        sa.Column("fail", sa.Integer(), server_default="0", nullable=False),
        sa.Column("dead", sa.Integer(), server_default="0", nullable=False),
        sa.Column("unknown", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "status",
            sa.Text(),
            sa.Computed(
                'CASE WHEN ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown") = 0 THEN \'empty\' WHEN "queued" = ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown") THEN \'queued\' WHEN "running" > 0 THEN \'running\' WHEN "waiting" > 0 THEN \'waiting\' WHEN "dead" = ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown") THEN \'finished dead\' WHEN "fail" > 0 THEN \'finished fail\' WHEN "dead" > 0 THEN \'finished fail\' WHEN "pass" = ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown") THEN \'finished pass\' WHEN "queued" > 0 THEN \'queued\' ELSE \'unknown\' END',
                persisted=True,
            ),
            nullable=False,
        ),
        sa.Column(
            "document",
            sa.Text(),
            sa.Computed(
                'labctl_run_document(name, path, user_name, CASE WHEN ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown") = 0 THEN \'empty\' WHEN "queued" = ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown") THEN \'queued\' WHEN "running" > 0 THEN \'running\' WHEN "waiting" > 0 THEN \'waiting\' WHEN "dead" = ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown") THEN \'finished dead\' WHEN "fail" > 0 THEN \'finished fail\' WHEN "dead" > 0 THEN \'finished fail\' WHEN "pass" = ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown") THEN \'finished pass\' WHEN "queued" > 0 THEN \'queued\' ELSE \'unknown\' END, queued, pass, running, waiting, fail, dead, unknown, ("queued" + "waiting" + "running" + "pass" + "fail" + "dead" + "unknown"), posted, scheduled, started, updated, branch, suite, machine_type, sha1, priority, flavor)',
                persisted=True,
            ),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("name", name="uq_runs_name"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_runs_branch", "runs", ["branch", "scheduled", "id"], unique=False)
    op.create_index("ix_runs_flavor", "runs", ["flavor", "scheduled", "id"], unique=False)
    op.create_index("ix_runs_machine_type", "runs", ["machine_type", "scheduled", "id"], unique=False)
    op.create_index("ix_runs_posted", "runs", ["posted", "id"], unique=False)
    op.create_index("ix_runs_queued", "runs", ["scheduled", "id"], unique=False, postgresql_where=sa.text("queued > 0"))
    op.create_index("ix_runs_scheduled", "runs", ["scheduled", "id"], unique=False)
    op.create_index("ix_runs_sha1", "runs", ["sha1"], unique=False, postgresql_ops={"sha1": "text_pattern_ops"})
    op.create_index("ix_runs_status", "runs", ["status", "scheduled", "id"], unique=False)
    op.create_index("ix_runs_suite", "runs", ["suite", "scheduled", "id"], unique=False)
    op.create_index("ix_runs_user_name", "runs", ["user_name", "scheduled", "id"], unique=False)
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("admin", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("rights", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("name", name="uq_users_name"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=True),
        sa.Column("user_name", sa.Text(), nullable=True),
        sa.Column("posted", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("lease_holder", sa.String(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_attempt", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_jobs_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("run_id", "job_id", name="uq_jobs_run_id_job_id"),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "ix_jobs_claimed", "jobs", ["id"], unique=False, postgresql_where=sa.text("lease_holder IS NOT NULL")
    )
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["queue", "priority", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index("ix_jobs_run_id_id", "jobs", ["run_id", "id"], unique=False)
    op.create_index("ix_jobs_running", "jobs", ["id"], unique=False, postgresql_where=sa.text("status = 'running'"))
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("public_id", sa.String(length=16), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_tokens_user_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("public_id", name="uq_tokens_public_id"),
        sa.UniqueConstraint("secret_hash", name="uq_tokens_secret_hash"),
    )
    op.create_index("ix_tokens_user_id", "tokens", ["user_id"], unique=False)
    op.create_table(
        "job_machines",
        sa.Column("job", sa.BigInteger(), nullable=False),
        sa.Column("machine_id", sa.Integer(), nullable=False),
        sa.Column("posted", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_job_machines_job", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["machine_id"], ["machines.id"], name="fk_job_machines_machine_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "machine_id", name="pk_job_machines"),
    )
    op.create_index("ix_job_machines_machine_id_job", "job_machines", ["machine_id", "job"], unique=False)
    op.create_index("ix_job_machines_posted", "job_machines", ["posted"], unique=False)
    # Half the size in a tenth of the time, where PostgreSQL was built with it.
    op.execute(
        """
        DO $$ BEGIN
            ALTER TABLE jobs ALTER COLUMN document SET COMPRESSION lz4;
        EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN NULL;
        END $$
        """
    )


def downgrade() -> None:
    for table in ("job_machines", "tokens", "jobs", "users", "runs", "queues", "machines", "events"):
        op.drop_table(table)
    op.execute(
        "DROP FUNCTION labctl_run_document(text, text, text, text, int, int, int, int, int, int, int, int, timestamptz,"
        " timestamptz, timestamptz, timestamptz, text, text, text, text, int, text)"
    )
    op.execute(
        "DROP FUNCTION labctl_machine_document(text, text, bool, text, bool, text, text, text, text, bool, timestamptz,"
        " text, text, text)"
    )
