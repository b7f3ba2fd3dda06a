"""An index of the few tasks that are Punctual's own.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = '0010'
down_revision = '0009'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index('ix_tasks_system', 'tasks', ['target'], postgresql_where=sa.text("target LIKE 'punctual.%'"))


def downgrade() -> None:
    op.drop_index('ix_tasks_system', 'tasks')
