"""Maintenance sessions, and what takes hosts out of service."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261121_maintenance"
down_revision = "20261121_remote"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('maintenance_sessions',
    sa.Column('id', sa.Text(), nullable=False),
    sa.Column('workflow', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('entered', sa.DateTime(timezone=True), nullable=False),
    sa.Column('failed_in', sa.Text(), nullable=True),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('maintenance_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('hints', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('actions', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
    sa.Column('created', sa.DateTime(timezone=True), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('base_url', sa.Text(), server_default='', nullable=False),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.Column('paused', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('deleted', sa.DateTime(timezone=True), nullable=True),
    sa.Column('waits_for', sa.Text(), nullable=True),
    sa.Column('waits_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('due', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('id', name='pk_maintenance_sessions')
    )
    op.create_index('ix_maintenance_sessions_due', 'maintenance_sessions', ['due'], unique=False, postgresql_where=sa.text('due IS NOT NULL'))
    op.create_index('ix_maintenance_sessions_created_id', 'maintenance_sessions', ['created', 'id'], unique=False, postgresql_where=sa.text('deleted IS NULL'))
    op.create_table('maintenance_subscriptions',
    sa.Column('project', sa.Text(), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('secret', sa.Text(), nullable=False),
    sa.Column('changed', sa.DateTime(timezone=True), nullable=False),
    sa.Column('changed_by', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('project', name='pk_maintenance_subscriptions')
    )
    op.create_table('vm_cordons',
    sa.Column('host', sa.Text(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('since', sa.DateTime(timezone=True), nullable=False),
    sa.Column('making', postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('migrating', postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False),
    sa.PrimaryKeyConstraint('host', name='pk_vm_cordons')
    )
    op.add_column('vm_work', sa.Column('rather_not', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False))
    op.create_table('maintenance_actions',
    sa.Column('session_id', sa.Text(), nullable=False),
    sa.Column('number', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('host', sa.Text(), nullable=False),
    sa.Column('attempt', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('plugin', sa.Text(), nullable=False),
    sa.Column('type', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('jobs', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
    sa.Column('due', sa.DateTime(timezone=True), nullable=True),
    sa.Column('started', sa.DateTime(timezone=True), nullable=True),
    sa.Column('deadline', sa.DateTime(timezone=True), nullable=True),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['session_id'], ['maintenance_sessions.id'], name='fk_maintenance_actions_session_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('session_id', 'number', 'host', 'attempt', name='pk_maintenance_actions')
    )
    op.create_table('maintenance_downloads',
    sa.Column('session_id', sa.Text(), nullable=False),
    sa.Column('position', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('sha256', sa.Text(), nullable=True),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('path', sa.Text(), nullable=True),
    sa.Column('size', sa.BigInteger(), nullable=True),
    sa.Column('failures', sa.Integer(), server_default='0', nullable=False),
    sa.Column('due', sa.DateTime(timezone=True), nullable=True),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_holder', sa.String(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_attempt', sa.Integer(), server_default='0', nullable=False),
    sa.ForeignKeyConstraint(['session_id'], ['maintenance_sessions.id'], name='fk_maintenance_downloads_session_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('session_id', 'position', name='pk_maintenance_downloads')
    )
    op.create_table('maintenance_hosts',
    sa.Column('session_id', sa.Text(), nullable=False),
    sa.Column('host', sa.Text(), nullable=False),
    sa.Column('position', sa.Integer(), nullable=False),
    sa.Column('held', sa.Boolean(), server_default=sa.text('true'), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('kinds', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
    sa.Column('cordoned', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('attempt', sa.Integer(), server_default='1', nullable=False),
    sa.Column('started', sa.DateTime(timezone=True), nullable=True),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['session_id'], ['maintenance_sessions.id'], name='fk_maintenance_hosts_session_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('session_id', 'host', name='pk_maintenance_hosts')
    )
    op.create_index('uq_maintenance_hosts_held', 'maintenance_hosts', ['host'], unique=True, postgresql_where=sa.text('held'))
    op.create_table('maintenance_moves',
    sa.Column('session_id', sa.Text(), nullable=False),
    sa.Column('instance', sa.Text(), nullable=False),
    sa.Column('host', sa.Text(), nullable=False),
    sa.Column('project', sa.Text(), nullable=False),
    sa.Column('how', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('work_id', sa.BigInteger(), nullable=True),
    sa.Column('moved_to', sa.Text(), nullable=True),
    sa.Column('replacement', sa.Text(), nullable=True),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('begun', sa.DateTime(timezone=True), nullable=False),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['session_id'], ['maintenance_sessions.id'], name='fk_maintenance_moves_session_id', ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['work_id'], ['vm_work.id'], name='fk_maintenance_moves_work_id', ondelete='SET NULL'),
    sa.PrimaryKeyConstraint('session_id', 'instance', 'host', name='pk_maintenance_moves')
    )
    op.create_index('ix_maintenance_moves_work_id', 'maintenance_moves', ['work_id'])
    op.create_table('maintenance_notices',
    sa.Column('id', sa.BigInteger(), nullable=False),
    sa.Column('session_id', sa.Text(), nullable=False),
    sa.Column('project', sa.Text(), nullable=False),
    sa.Column('body', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('created', sa.DateTime(timezone=True), nullable=False),
    sa.Column('due', sa.DateTime(timezone=True), nullable=True),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('until', sa.DateTime(timezone=True), nullable=False),
    sa.Column('delivered', sa.DateTime(timezone=True), nullable=True),
    sa.Column('error', sa.Text(), nullable=True),
    sa.Column('lease_holder', sa.String(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_attempt', sa.Integer(), server_default='0', nullable=False),
    sa.ForeignKeyConstraint(['session_id'], ['maintenance_sessions.id'], name='fk_maintenance_notices_session_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name='pk_maintenance_notices')
    )
    op.create_index('ix_maintenance_notices_due', 'maintenance_notices', ['due'], unique=False, postgresql_where=sa.text('due IS NOT NULL'))
    op.create_index('ix_maintenance_notices_session_id', 'maintenance_notices', ['session_id'], unique=False)
    op.create_table('maintenance_replies',
    sa.Column('session_id', sa.Text(), nullable=False),
    sa.Column('project', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('host', sa.Text(), server_default='', nullable=False),
    sa.Column('round', sa.Integer(), server_default='1', autoincrement=False, nullable=False),
    sa.Column('asked', sa.DateTime(timezone=True), nullable=True),
    sa.Column('reply_by', sa.DateTime(timezone=True), nullable=True),
    sa.Column('instances', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
    sa.Column('allowed_actions', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
    sa.Column('answer', sa.Text(), nullable=True),
    sa.Column('instance_actions', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('answered', sa.DateTime(timezone=True), nullable=True),
    sa.Column('answered_by', sa.Text(), nullable=True),
    sa.ForeignKeyConstraint(['session_id'], ['maintenance_sessions.id'], name='fk_maintenance_replies_session_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('session_id', 'project', 'state', 'host', 'round', name='pk_maintenance_replies')
    )
    op.create_table('maintenance_steps',
    sa.Column('id', sa.BigInteger(), nullable=False),
    sa.Column('session_id', sa.Text(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('host', sa.Text(), nullable=True),
    sa.Column('text', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['session_id'], ['maintenance_sessions.id'], name='fk_maintenance_steps_session_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name='pk_maintenance_steps')
    )
    op.create_index('ix_maintenance_steps_session_id', 'maintenance_steps', ['session_id', 'id'], unique=False)
    op.add_column('machines', sa.Column('cordoned', sa.Text(), nullable=True))
    op.create_index('ix_vms_host', 'vms', ['host'], unique=False, postgresql_where=sa.text("state <> 'destroyed'"))


def downgrade() -> None:
    op.drop_index("ix_vms_host", table_name="vms")
    op.drop_column("machines", "cordoned")
    op.drop_column("vm_work", "rather_not")
    for table in ("vm_cordons", "maintenance_subscriptions", "maintenance_actions", "maintenance_downloads", "maintenance_hosts", "maintenance_moves", "maintenance_notices", "maintenance_replies", "maintenance_steps", "maintenance_sessions"):
        op.drop_table(table)
