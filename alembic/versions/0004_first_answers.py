"""The first answers to requests with an idempotency key.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('answers',
    sa.Column('route', sa.Text(), nullable=False),
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('digest', sa.Text(), nullable=False),
    sa.Column('answer', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('route', 'key', name=op.f('pk_answers'))
    )
    op.create_index('ix_answers_created_at', 'answers', ['created_at'], unique=False)


def downgrade() -> None:
    op.drop_index('ix_answers_created_at', table_name='answers')
    op.drop_table('answers')
