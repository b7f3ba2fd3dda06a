"""Packs: how long runs of a target take, and which message a run was sent in; indexes in the order of reading.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

INDEXES = {
    'ix_tasks_due': (['next_run_at', 'id'], "state = 'active'"),
    'ix_tasks_unmirrored': (['bucket', 'next_run_at'], 'version <> mirrored_version'),
}


def upgrade() -> None:
    op.add_column('targets', sa.Column('duration', sa.Interval(), nullable=True))
    op.add_column('runs', sa.Column('pack_id', sa.Uuid(), nullable=True))
    _index(lambda columns: columns)


def downgrade() -> None:
    _index(lambda columns: columns[:1])
    op.drop_column('runs', 'pack_id')
    op.drop_column('targets', 'duration')


def _index(some) -> None:
    for name, (columns, condition) in INDEXES.items():
        op.drop_index(name, table_name='tasks')
        op.create_index(name, 'tasks', some(columns), postgresql_where=sa.text(condition))
