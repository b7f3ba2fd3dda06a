"""The parameters of a target, so that a task's arguments are held against them before they are registered.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    # null says that nobody has told: such arguments are not checked
    op.add_column('targets', sa.Column('parameters', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True))


def downgrade() -> None:
    op.drop_column('targets', 'parameters')
