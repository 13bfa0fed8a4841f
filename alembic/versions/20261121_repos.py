"""Projects, commits, repos, builds, storage nodes."""

import sqlalchemy as sa
from alembic import op

revision = "20261121_repos"
down_revision = "20261121_lab"
branch_labels = None
depends_on = None

_FUNCTIONS = """
CREATE OR REPLACE FUNCTION labctl_repo_document(
    url text, node_url text, ref text, sha1 text, distro text, distro_version text, distro_codename text,
    modified timestamptz, status text, flavor text, project text, archs text[], extra text
) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN '{"url":' || to_json(url) || ',"chacra_url":' || to_json(node_url) || ',"ref":' || to_json(ref)
        || ',"sha1":' || to_json(sha1) || ',"distro":' || to_json(distro)
        || ',"distro_version":' || coalesce(to_json(distro_version)::text, 'null')
        || ',"distro_codename":' || coalesce(to_json(distro_codename)::text, 'null')
        || ',"modified":"' || to_char(modified AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00"'
        || ',"status":' || to_json(status) || ',"flavor":' || to_json(flavor) || ',"project":' || to_json(project)
        || ',"archs":' || to_json(archs) || ',"extra":' || extra || '}';
END $$;
CREATE OR REPLACE FUNCTION labctl_build_document(
    url text, log_url text, ref text, sha1 text, flavor text, status text, extra text, modified timestamptz,
    started timestamptz, completed timestamptz, project text, distro text, distro_version text, distro_codename text,
    distro_arch text
) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN '{"url":' || to_json(url) || ',"log_url":' || coalesce(to_json(log_url)::text, 'null')
        || ',"ref":' || to_json(ref) || ',"sha1":' || to_json(sha1) || ',"flavor":' || to_json(flavor)
        || ',"status":' || to_json(status) || ',"extra":' || extra
        || ',"modified":"' || to_char(modified AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00"'
        || ',"started":"' || to_char(started AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00"'
        || ',"completed":'
        || coalesce('"' || to_char(completed AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00"', 'null')
        || ',"project":' || to_json(project) || ',"distro":' || coalesce(to_json(distro)::text, 'null')
        || ',"distro_version":' || coalesce(to_json(distro_version)::text, 'null')
        || ',"distro_codename":' || coalesce(to_json(distro_codename)::text, 'null')
        || ',"distro_arch":' || coalesce(to_json(distro_arch)::text, 'null') || '}';
END $$
"""


def upgrade() -> None:
    op.execute(_FUNCTIONS)
    op.create_table(
        "builds",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("sha1", sa.Text(), nullable=False),
        sa.Column("flavor", sa.Text(), nullable=False),
        sa.Column("distro", sa.Text(), nullable=True),
        sa.Column("distro_version", sa.Text(), nullable=True),
        sa.Column("distro_codename", sa.Text(), nullable=True),
        sa.Column("distro_arch", sa.Text(), nullable=True),
        sa.Column("platform", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("log_url", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("extra", sa.Text(), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed", sa.DateTime(timezone=True), nullable=True),
        sa.Column("changes", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "document",
            sa.Text(),
            sa.Computed(
                "labctl_build_document(url, log_url, ref, sha1, flavor, status, extra, modified, started, completed, project, distro, distro_version, distro_codename, distro_arch)",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_builds"),
    )
    op.create_index(
        "ix_builds_project_ref_sha1_modified", "builds", ["project", "ref", "sha1", "modified", "id"], unique=False
    )
    op.create_table(
        "commits",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("sha1", sa.Text(), nullable=False),
        sa.Column("repos", sa.Integer(), server_default="0", nullable=False),
        sa.Column("builds", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("repos >= 0 AND builds >= 0", name=op.f("ck_commits_counts")),
        sa.PrimaryKeyConstraint("id", name="pk_commits"),
        sa.UniqueConstraint("project", "ref", "sha1", name="uq_commits_project_ref_sha1"),
    )
    op.create_index("ix_commits_project_ref_id", "commits", ["project", "ref", "id"], unique=False)
    op.create_table(
        "projects",
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projects"),
    )
    op.create_table(
        "repos",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("node_url", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("ref", sa.Text(), nullable=False),
        sa.Column("sha1", sa.Text(), nullable=False),
        sa.Column("flavor", sa.Text(), nullable=False),
        sa.Column("distro", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("distro_version", sa.Text(), nullable=True),
        sa.Column("distro_codename", sa.Text(), nullable=True),
        sa.Column("platform", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("archs", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("extra", sa.Text(), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changes", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "document",
            sa.Text(),
            sa.Computed(
                "labctl_repo_document(url, node_url, ref, sha1, distro, distro_version, distro_codename, modified, status, flavor, project, archs, extra)",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_repos"),
        sa.UniqueConstraint("node_url", name="uq_repos_node_url"),
    )
    op.create_index("ix_repos_modified", "repos", ["modified", "id"], unique=False)
    op.create_index("ix_repos_project_modified", "repos", ["project", "modified", "id"], unique=False)
    op.create_index(
        "ix_repos_project_platform_modified", "repos", ["project", "platform", "modified", "id"], unique=False
    )
    op.create_index("ix_repos_project_ref_modified", "repos", ["project", "ref", "modified", "id"], unique=False)
    op.create_index(
        "ix_repos_project_ref_platform_modified",
        "repos",
        ["project", "ref", "platform", "modified", "id"],
        unique=False,
    )
    op.create_index(
        "ix_repos_sha1_platform_ref_project_modified",
        "repos",
        ["sha1", "platform", "ref", "project", "modified", "id"],
        unique=False,
    )
    op.create_table(
        "storage_nodes",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column(
            "last_used", sa.DateTime(timezone=True), server_default=sa.text("'1970-01-01 00:00:00+00'"), nullable=False
        ),
        sa.Column("last_check", sa.DateTime(timezone=True), nullable=True),
        sa.Column("healthy", sa.Boolean(), nullable=False),
        sa.Column("down_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("host", name="pk_storage_nodes"),
    )
    op.create_index(
        "ix_storage_nodes_next",
        "storage_nodes",
        ["last_used", "host"],
        unique=False,
        postgresql_where=sa.text("healthy"),
    )
    op.create_table(
        "build_statuses",
        sa.Column("build_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name="fk_build_statuses_build_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("build_id", "number", name="pk_build_statuses"),
    )
    op.create_table(
        "repo_statuses",
        sa.Column("repo_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["repo_id"], ["repos.id"], name="fk_repo_statuses_repo_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repo_id", "number", name="pk_repo_statuses"),
    )


def downgrade() -> None:
    for table in ("repo_statuses", "build_statuses", "repos", "builds", "commits", "projects", "storage_nodes"):
        op.drop_table(table)
    op.execute(
        "DROP FUNCTION labctl_repo_document(text, text, text, text, text, text, text, timestamptz, text, text, text,"
        " text[], text)"
    )
    op.execute(
        "DROP FUNCTION labctl_build_document(text, text, text, text, text, text, text, timestamptz, timestamptz,"
        " timestamptz, text, text, text, text, text)"
    )
