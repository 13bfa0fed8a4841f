"""Operations on hosts, their output, and the inventory."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261121_remote"
down_revision = "20261121_vms"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('remote_hosts',
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('groups', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.PrimaryKeyConstraint('name', name='pk_remote_hosts')
    )
    op.create_table('remote_inventory',
    sa.Column('id', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('read', sa.DateTime(timezone=True), nullable=False),
    sa.Column('error', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('id', name='pk_remote_inventory')
    )
    op.create_table('remote_jobs',
    sa.Column('id', sa.BigInteger(), nullable=False),
    sa.Column('jid', sa.Text(), nullable=False),
    sa.Column('operation', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='queued', nullable=False),
    sa.Column('error', sa.Text(), server_default='', nullable=False),
    sa.Column('arguments', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('unmasked', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('asked_by', sa.Text(), nullable=False),
    sa.Column('address', sa.Text(), nullable=True),
    sa.Column('key', sa.Text(), nullable=True),
    sa.Column('created', sa.DateTime(timezone=True), nullable=False),
    sa.Column('begin_by', sa.DateTime(timezone=True), nullable=False),
    sa.Column('timeout', sa.Float(), nullable=False),
    sa.Column('deadline', sa.DateTime(timezone=True), nullable=True),
    sa.Column('started', sa.DateTime(timezone=True), nullable=True),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.Column('cancelled', sa.DateTime(timezone=True), nullable=True),
    sa.Column('cancelled_by', sa.Text(), nullable=True),
    sa.Column('last_seq', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lease_holder', sa.String(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_attempt', sa.Integer(), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('id', name='pk_remote_jobs'),
    sa.UniqueConstraint('jid', name='uq_remote_jobs_jid'),
    sa.UniqueConstraint('key', name='uq_remote_jobs_key')
    )
    op.create_index('ix_remote_jobs_finished', 'remote_jobs', ['finished'], unique=False, postgresql_where=sa.text('finished IS NOT NULL'))
    op.create_index('ix_remote_jobs_operation', 'remote_jobs', ['operation', 'id'], unique=False)
    op.create_index('ix_remote_jobs_queued', 'remote_jobs', ['id'], unique=False, postgresql_where=sa.text("state = 'queued'"))
    op.create_index('ix_remote_jobs_running', 'remote_jobs', ['lease_until'], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_index('ix_remote_jobs_state', 'remote_jobs', ['state', 'id'], unique=False)
    op.create_table('remote_job_hosts',
    sa.Column('job_id', sa.BigInteger(), nullable=False),
    sa.Column('position', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('host', sa.Text(), nullable=False),
    sa.Column('operation', sa.Text(), nullable=False),
    sa.Column('held', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['job_id'], ['remote_jobs.id'], name='fk_remote_job_hosts_job_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('job_id', 'position', name='pk_remote_job_hosts')
    )
    op.create_index('ix_remote_job_hosts_host', 'remote_job_hosts', ['host', 'job_id'], unique=False)
    op.create_index('uq_remote_job_hosts_held', 'remote_job_hosts', ['host', 'operation'], unique=True, postgresql_where=sa.text('held'))
    op.create_table('remote_outputs',
    sa.Column('job_id', sa.BigInteger(), nullable=False),
    sa.Column('seq', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('host', sa.Text(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('chunk', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['job_id'], ['remote_jobs.id'], name='fk_remote_outputs_job_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('job_id', 'seq', name='pk_remote_outputs')
    )


def downgrade() -> None:
    for table in ("remote_outputs", "remote_job_hosts", "remote_jobs", "remote_inventory", "remote_hosts"):
        op.drop_table(table)
