"""VMs, work on them, pools, providers, and what happened on which day."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261121_vms"
down_revision = "20261121_repos"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('pool_days',
    sa.Column('day', sa.Date(), nullable=False),
    sa.Column('pool', sa.Text(), nullable=False),
    sa.Column('clones', sa.Integer(), server_default='0', nullable=False),
    sa.Column('clone_total', sa.Float(), server_default='0', nullable=False),
    sa.Column('clone_min', sa.Float(), nullable=True),
    sa.Column('clone_max', sa.Float(), nullable=True),
    sa.Column('boots', sa.Integer(), server_default='0', nullable=False),
    sa.Column('boot_total', sa.Float(), server_default='0', nullable=False),
    sa.Column('boot_min', sa.Float(), nullable=True),
    sa.Column('boot_max', sa.Float(), nullable=True),
    sa.Column('failures', sa.Integer(), server_default='0', nullable=False),
    sa.Column('checkouts', sa.Integer(), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('day', 'pool', name='pk_pool_days')
    )
    op.create_table('pool_states',
    sa.Column('pool', sa.Text(), nullable=False),
    sa.Column('size', sa.Integer(), nullable=True),
    sa.Column('template', sa.Text(), nullable=True),
    sa.Column('clone_target', sa.Integer(), nullable=True),
    sa.Column('failures', sa.Integer(), server_default='0', nullable=False),
    sa.Column('blocked_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('last_boot', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('pool', name='pk_pool_states')
    )
    op.create_table('provider_states',
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('failures', sa.Integer(), server_default='0', nullable=False),
    sa.Column('open_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('listed', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('provider', name='pk_provider_states')
    )
    op.create_table('tag_days',
    sa.Column('id', sa.BigInteger(), nullable=False),
    sa.Column('day', sa.Date(), nullable=False),
    sa.Column('tag', sa.Text(), nullable=False),
    sa.Column('value', sa.Text(), nullable=False),
    sa.Column('count', sa.Integer(), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('id', name='pk_tag_days'),
    sa.UniqueConstraint('day', 'tag', 'value', name='uq_tag_days_day_tag_value')
    )
    op.create_table('vm_orphans',
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('first_seen', sa.DateTime(timezone=True), nullable=False),
    sa.Column('sightings', sa.Integer(), server_default='1', nullable=False),
    sa.Column('lease_holder', sa.String(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_attempt', sa.Integer(), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('provider', 'name', name='pk_vm_orphans')
    )
    op.create_table('vm_requests',
    sa.Column('id', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('wanted', postgresql.JSONB(), nullable=False),
    sa.Column('message', sa.Text(), nullable=True),
    sa.Column('owner', sa.Text(), nullable=True),
    sa.Column('token_id', sa.Integer(), nullable=True),
    sa.Column('address', sa.Text(), nullable=True),
    sa.Column('created', sa.DateTime(timezone=True), nullable=False),
    sa.Column('deadline', sa.DateTime(timezone=True), nullable=False),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['token_id'], ['tokens.id'], name='fk_vm_requests_token_id', ondelete='SET NULL'),
    sa.PrimaryKeyConstraint('id', name='pk_vm_requests')
    )
    op.create_index('ix_vm_requests_waiting', 'vm_requests', ['deadline'], unique=False, postgresql_where=sa.text("state = 'waiting'"))
    op.create_table('vms',
    sa.Column('id', sa.BigInteger(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('pool', sa.Text(), nullable=False),
    sa.Column('template', sa.Text(), nullable=False),
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('domain', sa.Text(), server_default='', nullable=False),
    sa.Column('host', sa.Text(), nullable=True),
    sa.Column('ip', sa.Text(), nullable=True),
    sa.Column('requested', sa.DateTime(timezone=True), nullable=False),
    sa.Column('cloned', sa.DateTime(timezone=True), nullable=True),
    sa.Column('clone_seconds', sa.Float(), nullable=True),
    sa.Column('ready', sa.DateTime(timezone=True), nullable=True),
    sa.Column('boot_seconds', sa.Float(), nullable=True),
    sa.Column('checkout', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lifetime', sa.Integer(), nullable=True),
    sa.Column('expires', sa.DateTime(timezone=True), nullable=True),
    sa.Column('warned', sa.DateTime(timezone=True), nullable=True),
    sa.Column('completed', sa.DateTime(timezone=True), nullable=True),
    sa.Column('destroyed', sa.DateTime(timezone=True), nullable=True),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('owner', sa.Text(), nullable=True),
    sa.Column('token_id', sa.Integer(), nullable=True),
    sa.Column('address', sa.Text(), nullable=True),
    sa.Column('tags', postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('disks', postgresql.ARRAY(sa.Integer()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('snapshots', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('request_id', sa.Text(), nullable=True),
    sa.Column('due', sa.DateTime(timezone=True), nullable=False),
    sa.Column('failures', sa.Integer(), server_default='0', nullable=False),
    sa.Column('missing', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lease_holder', sa.String(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_attempt', sa.Integer(), server_default='0', nullable=False),
    sa.ForeignKeyConstraint(['request_id'], ['vm_requests.id'], name='fk_vms_request_id', ondelete='SET NULL'),
    sa.ForeignKeyConstraint(['token_id'], ['tokens.id'], name='fk_vms_token_id', ondelete='SET NULL'),
    sa.PrimaryKeyConstraint('id', name='pk_vms'),
    sa.UniqueConstraint('name', name='uq_vms_name'),
    postgresql_with={"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.02"}
    )
    op.create_index('ix_vms_destroyed', 'vms', ['destroyed'], unique=False, postgresql_where=sa.text("state = 'destroyed'"))
    op.create_index('ix_vms_due', 'vms', ['due', 'id'], unique=False, postgresql_where=sa.text("state <> 'destroyed'"))
    op.create_index('ix_vms_expires', 'vms', ['expires'], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_index('ix_vms_pool_state', 'vms', ['pool', 'state'], unique=False, postgresql_where=sa.text("state <> 'destroyed'"))
    op.create_index('ix_vms_ready', 'vms', ['pool', 'ready', 'id'], unique=False, postgresql_where=sa.text("state = 'ready'"))
    op.create_index('ix_vms_request_id', 'vms', ['request_id'], unique=False)
    op.create_index('ix_vms_token_id', 'vms', ['token_id'], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_table('vm_work',
    sa.Column('id', sa.BigInteger(), nullable=False),
    sa.Column('vm_id', sa.BigInteger(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('argument', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('created', sa.DateTime(timezone=True), nullable=False),
    sa.Column('finished', sa.DateTime(timezone=True), nullable=True),
    sa.Column('due', sa.DateTime(timezone=True), nullable=False),
    sa.Column('failures', sa.Integer(), server_default='0', nullable=False),
    sa.Column('lease_holder', sa.String(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('lease_attempt', sa.Integer(), server_default='0', nullable=False),
    sa.ForeignKeyConstraint(['vm_id'], ['vms.id'], name='fk_vm_work_vm_id', ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name='pk_vm_work')
    )
    op.create_index('ix_vm_work_due', 'vm_work', ['due', 'id'], unique=False, postgresql_where=sa.text("state = 'waiting'"))
    op.create_index('ix_vm_work_vm_id', 'vm_work', ['vm_id'], unique=False)
    op.add_column('users', sa.Column('ldap', sa.Boolean(), server_default=sa.text('false'), nullable=False))
    op.create_table('login_failures',
    sa.Column('user_name', sa.String(length=128), nullable=False),
    sa.Column('address', sa.String(length=64), nullable=False),
    sa.Column('count', sa.Integer(), nullable=False),
    sa.Column('last', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('user_name', 'address', name='pk_login_failures')
    )
    op.create_index('ix_login_failures_last', 'login_failures', ['last'], unique=False)


def downgrade() -> None:
    op.drop_table('login_failures')
    op.drop_column('users', 'ldap')
    for table in ("vm_work", "vms", "vm_requests", "vm_orphans", "tag_days", "provider_states", "pool_states", "pool_days"):
        op.drop_table(table)
