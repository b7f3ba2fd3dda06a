"""Incidents, whom a task's are told, and which minutes were looked through for late runs.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0011'
down_revision = '0010'
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table('incidents',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('task_id', sa.Uuid(), nullable=False),
    sa.Column('task_name', sa.Text(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('run_id', sa.Uuid(), nullable=True),
    sa.Column('scheduled_for', TIME, nullable=True),
    sa.Column('note', sa.Text(), nullable=True),
    sa.Column('count', sa.Integer(), nullable=False),
    sa.Column('reopened', sa.Integer(), server_default='0', nullable=False),
    sa.Column('opened_at', TIME, nullable=False),
    sa.Column('last_at', TIME, nullable=False),
    sa.Column('last_slot', TIME, nullable=True),
    sa.Column('closed_at', TIME, nullable=True),
    sa.Column('ending', sa.Text(), nullable=True),
    sa.Column('untold', sa.Boolean(), server_default=sa.text('true'), nullable=False),
    sa.Column('changed_at', TIME, nullable=False),
    sa.Column('told', sa.Text(), nullable=True),
    sa.Column('told_by', sa.Uuid(), nullable=True),
    sa.CheckConstraint("kind IN ('failed', 'late', 'missed', 'paused')", name=op.f('ck_incidents_kind')),
    sa.CheckConstraint("ending IN ('well', 'deleted', 'over')", name=op.f('ck_incidents_ending')),
    sa.CheckConstraint("told IN ('opened', 'closed', 'nothing')", name=op.f('ck_incidents_told')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_incidents'))
    )
    op.create_index('uq_incidents_open', 'incidents', ['task_id', 'kind'], unique=True,
                    postgresql_where=sa.text('closed_at IS NULL'))
    op.create_index('ix_incidents_untold', 'incidents', ['changed_at'], postgresql_where=sa.text('untold'))
    op.create_index('ix_incidents_opened', 'incidents', ['opened_at', 'id'])
    op.create_index('ix_incidents_task', 'incidents', ['task_id', 'kind', 'opened_at'])
    op.create_index('ix_incidents_closed', 'incidents', ['closed_at'], postgresql_where=sa.text('closed_at IS NOT NULL'))
    op.add_column('tasks', sa.Column('notify', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True))
    # of what was late before nobody is told now; a default fills the column without a word to each row
    op.add_column('summaries', sa.Column('looked_at', TIME, server_default=sa.func.now(), nullable=True))
    op.alter_column('summaries', 'looked_at', server_default=None)


def downgrade() -> None:
    op.drop_column('summaries', 'looked_at')
    op.drop_column('tasks', 'notify')
    op.drop_table('incidents')
