"""Keys of the API, and who changed what.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('keys',
    sa.Column('id', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('role', sa.Text(), nullable=False),
    sa.Column('digest', sa.Text(), nullable=False),
    sa.Column('queues', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('labels', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('max_tasks', sa.Integer(), nullable=True),
    sa.Column('tasks', sa.Integer(), server_default='0', nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_used_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("role IN ('viewer', 'operator', 'editor', 'admin')", name=op.f('ck_keys_role')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_keys'))
    )
    op.create_index('ix_keys_created', 'keys', ['created_at', 'id'])
    op.create_table('audit',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('actor', sa.Text(), nullable=False),
    sa.Column('actor_name', sa.Text(), nullable=False),
    sa.Column('via', sa.Text(), nullable=False),
    sa.Column('address', sa.Text(), nullable=True),
    sa.Column('action', sa.Text(), nullable=False),
    sa.Column('subject', sa.Text(), nullable=False),
    sa.Column('subject_id', sa.Text(), nullable=False),
    sa.Column('subject_name', sa.Text(), nullable=False),
    sa.Column('before', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('after', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('position', sa.BigInteger(), nullable=True),
    sa.Column('previous', sa.Text(), nullable=True),
    sa.Column('hash', sa.Text(), nullable=True),
    sa.CheckConstraint("via IN ('api', 'page', 'celery')", name=op.f('ck_audit_via')),
    sa.CheckConstraint("subject IN ('task', 'run', 'key')", name=op.f('ck_audit_subject')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit')),
    sa.UniqueConstraint('position', name=op.f('uq_audit_position'))
    )
    op.create_index('ix_audit_unsealed', 'audit', ['id'], postgresql_where=sa.text('position IS NULL'))
    op.create_index('ix_audit_subject', 'audit', ['subject_id', 'id'])
    op.create_index('ix_audit_actor', 'audit', ['actor', 'id'])
    op.create_index('ix_audit_at', 'audit', ['at'])
    op.add_column('tasks', sa.Column('created_by', sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column('tasks', 'created_by')
    op.drop_table('audit')
    op.drop_table('keys')
