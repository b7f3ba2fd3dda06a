"""Who is there: a row per beat and worker; and which tasks Punctual itself has paused.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('nodes',
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('seen_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('details', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.CheckConstraint("kind IN ('beat', 'worker')", name=op.f('ck_nodes_kind')),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_nodes'))
    )
    op.add_column('tasks', sa.Column('set_aside', sa.Text(), nullable=True))
    op.create_index('ix_tasks_set_aside', 'tasks', ['updated_at'], unique=False, postgresql_where=sa.text('set_aside IS NOT NULL'))


def downgrade() -> None:
    op.drop_index('ix_tasks_set_aside', table_name='tasks', postgresql_where=sa.text('set_aside IS NOT NULL'))
    op.drop_column('tasks', 'set_aside')
    op.drop_table('nodes')
