"""The first tables: tasks, their runs by month, past attempts, and what the workers can run.

Revision ID: 0001
Revises: 
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def _months(count: int) -> Iterator[tuple[date, date]]:
    """This month and those that follow: later ones are made by the chore `make_partitions`."""
    first = datetime.now(UTC).date().replace(day=1)
    for _ in range(count):
        after = (first + timedelta(days=32)).replace(day=1)
        yield first, after
        first = after


def upgrade() -> None:
    op.create_table('attempts',
    sa.Column('run_id', sa.Uuid(), nullable=False),
    sa.Column('scheduled_for', sa.DateTime(timezone=True), nullable=False),
    sa.Column('attempt', sa.SmallInteger(), nullable=False),
    sa.Column('worker', sa.Text(), nullable=True),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('finished_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('outcome', sa.Text(), nullable=False),
    sa.Column('error', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.PrimaryKeyConstraint('run_id', 'scheduled_for', 'attempt', name=op.f('pk_attempts')),
    postgresql_partition_by='RANGE (scheduled_for)'
    )
    op.create_table('runs',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('task_id', sa.Uuid(), nullable=False),
    sa.Column('scheduled_for', sa.DateTime(timezone=True), nullable=False),
    sa.Column('task_name', sa.Text(), nullable=False),
    sa.Column('target', sa.Text(), nullable=False),
    sa.Column('queue', sa.Text(), nullable=False),
    sa.Column('trigger', sa.Text(), nullable=False),
    sa.Column('missed', sa.Integer(), nullable=False),
    sa.Column('args', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('kwargs', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('attempt', sa.SmallInteger(), nullable=False),
    sa.Column('worker', sa.Text(), nullable=True),
    sa.Column('fired_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('published_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('attempt_started_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('heartbeat_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('retry_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('result', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('error', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.CheckConstraint("reason IN ('error', 'timeout', 'lost', 'rejected', 'by_user', 'overlap', 'task_deleted', 'missed', 'paused')", name=op.f('ck_runs_reason')),
    sa.CheckConstraint("state IN ('pending', 'queued', 'running', 'retrying', 'succeeded', 'failed', 'cancelled', 'skipped')", name=op.f('ck_runs_state')),
    sa.CheckConstraint("trigger IN ('schedule', 'manual', 'backfill')", name=op.f('ck_runs_trigger')),
    sa.PrimaryKeyConstraint('id', 'scheduled_for', name=op.f('pk_runs')),
    sa.UniqueConstraint('task_id', 'scheduled_for', name='uq_runs_task_slot'),
    postgresql_partition_by='RANGE (scheduled_for)'
    )
    op.create_index('ix_runs_open', 'runs', ['state', 'task_id'], unique=False, postgresql_where=sa.text("state IN ('pending', 'queued', 'retrying', 'running')"))
    op.create_index('ix_runs_scheduled', 'runs', ['scheduled_for', 'id'], unique=False)
    op.create_table('targets',
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('queue', sa.Text(), nullable=False),
    sa.Column('signature', sa.Text(), nullable=False),
    sa.Column('documentation', sa.Text(), nullable=False),
    sa.Column('last_seen_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_targets'))
    )
    op.create_table('tasks',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('bucket', sa.SmallInteger(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('description', sa.Text(), nullable=False),
    sa.Column('labels', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('target', sa.Text(), nullable=False),
    sa.Column('args', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('kwargs', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('queue', sa.Text(), nullable=False),
    sa.Column('priority', sa.SmallInteger(), nullable=False),
    sa.Column('schedule', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('starts_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('ends_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('max_runs', sa.Integer(), nullable=True),
    sa.Column('jitter', sa.Interval(), nullable=False),
    sa.Column('overlap', sa.Text(), nullable=False),
    sa.Column('catchup_policy', sa.Text(), nullable=False),
    sa.Column('catchup_window', sa.Interval(), nullable=True),
    sa.Column('max_attempts', sa.Integer(), nullable=False),
    sa.Column('backoff', sa.Interval(), nullable=False),
    sa.Column('backoff_max', sa.Interval(), nullable=False),
    sa.Column('backoff_jitter', sa.Boolean(), nullable=False),
    sa.Column('timeout', sa.Interval(), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('note', sa.Text(), nullable=True),
    sa.Column('next_run_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_run_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('run_count', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('mirrored_version', sa.Integer(), nullable=False),
    sa.CheckConstraint("catchup_policy IN ('latest', 'all', 'none')", name=op.f('ck_tasks_catchup_policy')),
    sa.CheckConstraint("overlap IN ('allow', 'skip')", name=op.f('ck_tasks_overlap')),
    sa.CheckConstraint("state IN ('active', 'paused', 'completed', 'deleted')", name=op.f('ck_tasks_state')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_tasks'))
    )
    op.create_index('ix_tasks_created', 'tasks', ['created_at', 'id'], unique=False)
    op.create_index('ix_tasks_due', 'tasks', ['next_run_at'], unique=False, postgresql_where=sa.text("state = 'active'"))
    op.create_index('ix_tasks_unmirrored', 'tasks', ['bucket'], unique=False, postgresql_where=sa.text('version <> mirrored_version'))
    op.create_index('uq_tasks_name', 'tasks', ['name'], unique=True, postgresql_where=sa.text("state <> 'deleted'"))
    for table in ("runs", "attempts"):
        # what falls outside the months that exist, far in the past or ahead of the chore, still has a place
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
        for first, after in _months(4):
            op.execute(
                f"CREATE TABLE {table}_{first:%Y_%m} PARTITION OF {table} "
                f"FOR VALUES FROM ('{first:%Y-%m-%d} 00:00:00+00') TO ('{after:%Y-%m-%d} 00:00:00+00')"
            )


def downgrade() -> None:
    op.drop_index('uq_tasks_name', table_name='tasks', postgresql_where=sa.text("state <> 'deleted'"))
    op.drop_index('ix_tasks_unmirrored', table_name='tasks', postgresql_where=sa.text('version <> mirrored_version'))
    op.drop_index('ix_tasks_due', table_name='tasks', postgresql_where=sa.text("state = 'active'"))
    op.drop_index('ix_tasks_created', table_name='tasks')
    op.drop_table('tasks')
    op.drop_table('targets')
    op.drop_index('ix_runs_scheduled', table_name='runs')
    op.drop_index('ix_runs_open', table_name='runs', postgresql_where=sa.text("state IN ('pending', 'queued', 'retrying', 'running')"))
    op.drop_table('runs')
    op.drop_table('attempts')
