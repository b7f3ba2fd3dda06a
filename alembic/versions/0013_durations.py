"""How long the runs of each task take, for the forecast.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = '0013'
down_revision = '0012'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'durations',
        sa.Column('task_id', sa.Uuid(), nullable=False),
        sa.Column('target', sa.Text(), nullable=False),
        sa.Column('seconds', sa.Double(), nullable=False),
        sa.Column('runs', sa.SmallInteger(), nullable=False),
        sa.Column('newest', sa.DateTime(timezone=True), nullable=False),
        sa.Column('made_at', sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint('task_id', name=op.f('pk_durations')),
    )


def downgrade() -> None:
    op.drop_table('durations')
