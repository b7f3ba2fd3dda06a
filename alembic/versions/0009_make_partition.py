"""A function that makes a month's partition, so that a beat needs no right to make tables.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None

# It runs with its owner's rights, so it finds nothing by the caller's search path, and makes nothing but what is due:
# a partition of these two tables, for a whole month, from the last one to a year ahead.
MAKE_PARTITION = """
    CREATE FUNCTION make_partition(parent text, month date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp
    AS $$
    DECLARE
        name text := format('%s_%s', parent, to_char(month, 'YYYY_MM'));
        today date := (now() AT TIME ZONE 'UTC')::date;
    BEGIN
        IF parent NOT IN ('runs', 'attempts') OR extract(day FROM month) <> 1
            OR NOT month BETWEEN today - 62 AND today + 366
        THEN
            RAISE 'no partition of % begins on %', parent, month USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF to_regclass(name) IS NOT NULL THEN
            RETURN false;
        END IF;
        -- two beats may come here at once: the second waits, then finds it there
        PERFORM pg_advisory_xact_lock(hashtext(name));
        IF to_regclass(name) IS NOT NULL THEN
            RETURN false;
        END IF;
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
            name, parent, month || ' 00:00:00+00', (month + interval '1 month')::date || ' 00:00:00+00'
        );
        RETURN true;
    END
    $$
"""


def upgrade() -> None:
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(MAKE_PARTITION.format(schema=schema))
    op.execute("REVOKE ALL ON FUNCTION make_partition(text, date) FROM PUBLIC")


def downgrade() -> None:
    op.execute("DROP FUNCTION make_partition(text, date)")
