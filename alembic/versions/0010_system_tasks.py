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
    # beside those who change tasks, for whom it waits as long as it takes
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_tasks_system")  # half of one, from a try that was cut short
        op.create_index('ix_tasks_system', 'tasks', ['target'], postgresql_concurrently=True,
                        postgresql_where=sa.text("target LIKE 'punctual.%'"))
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    op.drop_index('ix_tasks_system', 'tasks')
