"""Summaries of minutes and hours, and an index for the lists of runs that did not succeed.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None

COUNTS = ('succeeded', 'failed', 'cancelled', 'skipped', 'waiting', 'started', 'in_time', 'late')

# Each minute of the last 8 days that has a run, by one look-up for each minute: the runs themselves may be millions.
# And the current one, from which the chore goes on: the release before this one records runs without a word of them.
MINUTES = """
    INSERT INTO summaries (span, start)
    SELECT 'minute', minute
    FROM generate_series(date_trunc('minute', now()) - interval '8 days', now(), interval '1 minute') AS minute
    WHERE minute = date_trunc('minute', now()) OR EXISTS (
        SELECT FROM runs WHERE scheduled_for >= minute AND scheduled_for < minute + interval '1 minute'
    )
"""


def upgrade() -> None:
    op.create_table('summaries',
    sa.Column('span', sa.Text(), nullable=False),
    sa.Column('start', sa.DateTime(timezone=True), nullable=False),
    sa.Column('open', sa.Boolean(), server_default=sa.text('true'), nullable=False),
    sa.Column('made_at', sa.DateTime(timezone=True), nullable=True),
    *(sa.Column(name, sa.Integer(), server_default='0', nullable=False) for name in COUNTS),
    sa.Column('worst', sa.Interval(), nullable=True),
    sa.Column('histogram', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    sa.CheckConstraint("span IN ('minute', 'hour')", name=op.f('ck_summaries_span')),
    sa.PrimaryKeyConstraint('span', 'start', name=op.f('pk_summaries'))
    )
    op.create_index('ix_summaries_open', 'summaries', ['start'], postgresql_where=sa.text("open AND span = 'minute'"))
    op.create_index('ix_runs_otherwise', 'runs', ['state', 'scheduled_for', 'id'],
                    postgresql_where=sa.text("state IN ('cancelled', 'failed', 'skipped')"))
    op.execute(MINUTES)


def downgrade() -> None:
    op.drop_index('ix_runs_otherwise', table_name='runs')
    op.drop_table('summaries')
