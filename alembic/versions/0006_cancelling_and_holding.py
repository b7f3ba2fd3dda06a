"""Runs that are held, runs that are to be cancelled while they run, and tasks that pause after failures.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None

OVERLAP = op.f('ck_tasks_overlap')


def upgrade() -> None:
    op.add_column('tasks', sa.Column('pause_after_failures', sa.Integer(), nullable=True))
    op.add_column('runs', sa.Column('held', sa.Boolean(), server_default=sa.text('false'), nullable=False))
    op.add_column('runs', sa.Column('cancel_reason', sa.Text(), nullable=True))
    op.create_index('ix_runs_held', 'runs', ['task_id'], postgresql_where=sa.text('held'))
    op.drop_constraint(OVERLAP, 'tasks')
    op.create_check_constraint(OVERLAP, 'tasks', "overlap IN ('allow', 'skip', 'queue', 'cancel')")


def downgrade() -> None:
    op.drop_constraint(OVERLAP, 'tasks')
    op.execute("UPDATE tasks SET overlap = 'skip' WHERE overlap IN ('queue', 'cancel')")
    op.create_check_constraint(OVERLAP, 'tasks', "overlap IN ('allow', 'skip')")
    op.drop_index('ix_runs_held', 'runs')
    op.drop_column('runs', 'cancel_reason')
    op.drop_column('runs', 'held')
    op.drop_column('tasks', 'pause_after_failures')
