"""An index of the open runs of each task.

Revision ID: 0014
Revises: 0013
"""

from alembic import op

revision = '0014'
down_revision = '0013'
branch_labels = None
depends_on = None

OPEN = "WHERE finished_at IS NULL"

LEFT = """
    SELECT part.relid::regclass::text
    FROM pg_partition_tree('runs') part
    WHERE part.isleaf AND NOT EXISTS (
        SELECT FROM pg_index own JOIN pg_inherits up ON up.inhrelid = own.indexrelid
        WHERE own.indrelid = part.relid AND up.inhparent = 'ix_runs_open_task'::regclass
    )
"""


def upgrade() -> None:
    """Partition by partition, beside those who change runs. What a try has done that was cut short stays done."""
    with op.get_context().autocommit_block():
        op.execute(f"CREATE INDEX IF NOT EXISTS ix_runs_open_task ON ONLY runs (task_id) {OPEN}")
        for [partition] in op.get_bind().exec_driver_sql(LEFT).all():
            # nobody waits behind it, so it may wait as long as it takes
            op.execute("SET lock_timeout = 0")
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {partition}_open_task")  # half of one
            op.execute(f"CREATE INDEX CONCURRENTLY {partition}_open_task ON {partition} (task_id) {OPEN}")
            op.execute("RESET lock_timeout")
            op.execute(f"ALTER INDEX ix_runs_open_task ATTACH PARTITION {partition}_open_task")


def downgrade() -> None:
    op.drop_index('ix_runs_open_task', 'runs')
