"""How long runs of a target take: what decides whether they may share a message.

Revision ID: 0003
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('targets', sa.Column('duration', sa.Interval(), nullable=True))


def downgrade() -> None:
    op.drop_column('targets', 'duration')
