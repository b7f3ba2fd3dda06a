"""Functions that let go of old runs, so that a beat needs no right to delete or to drop.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = '0012'
down_revision = '0011'
branch_labels = None
depends_on = None

# All of them run with their owner's rights, so they find nothing by the caller's search path, and whatever they are
# asked they keep what is younger: a month for four weeks after its end, a run for a day after its slot.
HEAD = "LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp"

# Who uses the tables is waited for, and whoever comes meanwhile waits behind that: so not for long.
DETACH_MONTH = """
    CREATE FUNCTION detach_month(month date) RETURNS boolean {head} SET lock_timeout = '100ms'
    AS $$
    DECLARE
        names text[] := ARRAY['runs_' || to_char(month, 'YYYY_MM'), 'attempts_' || to_char(month, 'YYYY_MM')];
        found record;
        is_open boolean := false;
        looks CONSTANT text := 'SELECT EXISTS (SELECT FROM %I'
            ' WHERE state IN (''pending'', ''queued'', ''retrying'', ''running''))';
    BEGIN
        PERFORM check_old_month(month);
        IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid IN (to_regclass(names[1]), to_regclass(names[2]))) THEN
            IF to_regclass(names[1]) IS NOT NULL THEN
                -- looked at before, so that a month that must stay keeps nobody out
                EXECUTE format(looks, names[1]) INTO is_open;
                IF NOT is_open THEN
                    LOCK TABLE ONLY runs, ONLY attempts IN ACCESS EXCLUSIVE MODE;
                    EXECUTE format(looks, names[1]) INTO is_open;
                END IF;
            END IF;
            IF is_open THEN
                RETURN false;
            END IF;
            FOR found IN
                SELECT inhparent::regclass AS parent, inhrelid::regclass AS name FROM pg_inherits
                WHERE inhrelid IN (to_regclass(names[1]), to_regclass(names[2]))
                    AND inhparent IN ('runs'::regclass, 'attempts'::regclass)
            LOOP
                EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', found.parent, found.name);
            END LOOP;
        END IF;
        -- to be archived it must be read, which a right on the parent does not allow any more
        FOR found IN SELECT name FROM unnest(names) AS name WHERE to_regclass(name) IS NOT NULL LOOP
            EXECUTE format('GRANT SELECT ON %I TO %I', found.name, session_user);
        END LOOP;
        RETURN true;
    END
    $$
"""

# Null for a count: nobody has archived it, nor wants to.
DROP_MONTH = """
    CREATE FUNCTION drop_month(month date, archived_runs bigint, archived_attempts bigint) RETURNS void {head}
    AS $$
    DECLARE
        parent text;
        name text;
        archived bigint;
        there bigint;
    BEGIN
        PERFORM check_old_month(month);
        FOREACH parent IN ARRAY ARRAY['runs', 'attempts'] LOOP
            name := format('%s_%s', parent, to_char(month, 'YYYY_MM'));
            archived := CASE parent WHEN 'runs' THEN archived_runs ELSE archived_attempts END;
            CONTINUE WHEN to_regclass(name) IS NULL;
            IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(name)) THEN
                RAISE '% is in use', name USING ERRCODE = 'invalid_parameter_value';
            END IF;
            IF archived IS NOT NULL THEN
                EXECUTE format('SELECT count(*) FROM %I', name) INTO there;
                IF there <> archived THEN
                    RAISE '% has % rows, and % were archived', name, there, archived USING ERRCODE = 'data_exception';
                END IF;
            END IF;
            EXECUTE format('DROP TABLE %I', name);
        END LOOP;
    END
    $$
"""

CHECK_OLD_MONTH = """
    CREATE FUNCTION check_old_month(month date) RETURNS void {head}
    AS $$
    BEGIN
        IF month IS NULL OR extract(day FROM month) <> 1
            OR month + interval '1 month' > (now() AT TIME ZONE 'UTC')::date - 28
        THEN
            RAISE 'no month that may go begins on %', month USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END
    $$
"""

FORGET_RUNS = """
    CREATE FUNCTION forget_runs(ids uuid[], slots timestamptz[]) RETURNS bigint {head}
    AS $$
    DECLARE
        gone bigint;
    BEGIN
        WITH old AS (
            SELECT r.id, r.scheduled_for
            FROM unnest(ids, slots) AS given (id, slot)
            JOIN runs r ON r.id = given.id AND r.scheduled_for = given.slot
            WHERE r.state IN ('succeeded', 'failed', 'cancelled', 'skipped') AND given.slot < now() - interval '1 day'
            FOR UPDATE OF r SKIP LOCKED
        ), tries AS (
            DELETE FROM attempts a USING old WHERE a.run_id = old.id AND a.scheduled_for = old.scheduled_for
        ), deleted AS (
            DELETE FROM runs r USING old WHERE r.id = old.id AND r.scheduled_for = old.scheduled_for RETURNING r.id
        )
        SELECT count(*) FROM deleted INTO gone;
        RETURN gone;
    END
    $$
"""

FORGET_TASKS = """
    CREATE FUNCTION forget_tasks(ids uuid[]) RETURNS bigint {head}
    AS $$
    DECLARE
        gone bigint;
    BEGIN
        WITH deleted AS (
            DELETE FROM tasks t
            WHERE t.id = ANY (ids) AND t.state = 'deleted' AND t.updated_at < now() - interval '1 day'
                AND NOT EXISTS (SELECT FROM runs r WHERE r.task_id = t.id)
            RETURNING t.id
        )
        SELECT count(*) FROM deleted INTO gone;
        RETURN gone;
    END
    $$
"""

FUNCTIONS = {
    "check_old_month(date)": CHECK_OLD_MONTH,
    "detach_month(date)": DETACH_MONTH,
    "drop_month(date, bigint, bigint)": DROP_MONTH,
    "forget_runs(uuid[], timestamptz[])": FORGET_RUNS,
    "forget_tasks(uuid[])": FORGET_TASKS,
}


def upgrade() -> None:
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    for signature, text in FUNCTIONS.items():
        # past SQLAlchemy, which would take a colon for the beginning of a parameter
        op.get_bind().exec_driver_sql(text.replace("%", "%%").format(head=HEAD.format(schema=schema)))
        op.execute(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")


def downgrade() -> None:
    for signature in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {signature}")
