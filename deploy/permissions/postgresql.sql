-- What each process may do in PostgreSQL. For psql, as a superuser, in Punctual's own database:
--
--   psql --no-psqlrc --dbname "$ADMIN_URL" --file deploy/permissions/postgresql.sql
--
-- Once before the first migration, which punctual_owner runs, and again after each. It may be repeated at any time, and
-- takes back what it does not say. Passwords come from the environment: OWNER_PASSWORD, WEB_PASSWORD, BEAT_PASSWORD,
-- WORKER_PASSWORD and BACKUP_PASSWORD. A role whose password is not set there keeps the one that it has. While a password
-- is replaced, WEB_PASSWORD_SECOND opens punctual_web_second, which is punctual_web by another name; BEAT_PASSWORD_SECOND
-- and WORKER_PASSWORD_SECOND do likewise. Where they are not set, nobody gets in by these names.
\set ON_ERROR_STOP on
\getenv owner_password OWNER_PASSWORD
\getenv web_password WEB_PASSWORD
\getenv beat_password BEAT_PASSWORD
\getenv worker_password WORKER_PASSWORD
\getenv backup_password BACKUP_PASSWORD
\set web_second ''
\set beat_second ''
\set worker_second ''
\getenv web_second WEB_PASSWORD_SECOND
\getenv beat_second BEAT_PASSWORD_SECOND
\getenv worker_second WORKER_PASSWORD_SECOND
SELECT current_database() AS database, current_schema() AS schema \gset

BEGIN;
-- a password is no word for the server's log
SET LOCAL log_statement = 'none';
SET LOCAL log_min_error_statement = 'panic';
SET LOCAL client_min_messages = 'warning';
SELECT :'web_second' <> '' AS opens_web, :'beat_second' <> '' AS opens_beat, :'worker_second' <> '' AS opens_worker \gset

-- Roles. A connection of Punctual's sets shorter timeouts by itself: these are for whoever else logs in as one of them.
-- Each kind has its part of the connections, so that workers that are too many shut out neither web nor beat. For more
-- workers raise theirs and the server's max_connections: the limits here are those of a role that is new.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('punctual_owner', 5, '0', NULL),
            ('punctual_web', 60, '10s', NULL),
            ('punctual_beat', 40, '10s', NULL),
            ('punctual_worker', 85, '10s', NULL),
            ('punctual_backup', 3, '0', NULL),
            ('punctual_web_second', 60, '10s', 'punctual_web'),
            ('punctual_beat_second', 40, '10s', 'punctual_beat'),
            ('punctual_worker_second', 85, '10s', 'punctual_worker')
        ) AS roles (name, connections, patience, first_name)
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.name) THEN
            EXECUTE format('CREATE ROLE %I', wanted.name);
            EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', wanted.name, wanted.connections);
        END IF;
        EXECUTE format(
            'ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS', wanted.name
        );
        EXECUTE format('ALTER ROLE %I SET statement_timeout = %L', wanted.name, wanted.patience);
        EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = %L', wanted.name, '60s');
        IF wanted.first_name IS NOT NULL THEN
            -- INHERIT to be let in, SET role to act, and to own what is made, as the first one
            EXECUTE format('ALTER ROLE %I NOLOGIN INHERIT PASSWORD NULL', wanted.name);
            EXECUTE format('GRANT %I TO %I', wanted.first_name, wanted.name);
            EXECUTE format('ALTER ROLE %I SET role = %L', wanted.name, wanted.first_name);
        END IF;
    END LOOP;
END
$$;
\if :{?owner_password}
ALTER ROLE punctual_owner PASSWORD :'owner_password';
\endif
\if :{?web_password}
ALTER ROLE punctual_web PASSWORD :'web_password';
\endif
\if :{?beat_password}
ALTER ROLE punctual_beat PASSWORD :'beat_password';
\endif
\if :{?worker_password}
ALTER ROLE punctual_worker PASSWORD :'worker_password';
\endif
\if :{?backup_password}
ALTER ROLE punctual_backup PASSWORD :'backup_password';
\endif
\if :opens_web
ALTER ROLE punctual_web_second LOGIN PASSWORD :'web_second';
\endif
\if :opens_beat
ALTER ROLE punctual_beat_second LOGIN PASSWORD :'beat_second';
\endif
\if :opens_worker
ALTER ROLE punctual_worker_second LOGIN PASSWORD :'worker_second';
\endif

-- The database and its schema are nobody else's. Tables that somebody else made before, as an older installation's
-- superuser did, become the owner's.
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO punctual_owner, punctual_web, punctual_beat, punctual_worker, punctual_backup;
ALTER SCHEMA :"schema" OWNER TO punctual_owner;
REVOKE ALL ON SCHEMA :"schema" FROM PUBLIC, punctual_web, punctual_beat, punctual_worker, punctual_backup;
GRANT USAGE ON SCHEMA :"schema" TO punctual_web, punctual_beat, punctual_worker, punctual_backup;
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT oid::regclass AS name FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
            AND relowner <> 'punctual_owner'::regrole
            AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO punctual_owner', found.name);
    END LOOP;
    FOR found IN
        SELECT oid::regprocedure AS name FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND prosecdef AND proowner <> 'punctual_owner'::regrole
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO punctual_owner', found.name);
    END LOOP;
END
$$;

-- What later migrations make is open to no process before it stands below.
ALTER DEFAULT PRIVILEGES FOR ROLE punctual_owner REVOKE ALL ON TABLES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE punctual_owner REVOKE ALL ON SEQUENCES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE punctual_owner REVOKE ALL ON FUNCTIONS FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA :"schema" FROM PUBLIC, punctual_web, punctual_beat, punctual_worker, punctual_backup;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA :"schema" FROM PUBLIC, punctual_web, punctual_beat, punctual_worker, punctual_backup;

-- A backup reads all there is, also the months that beats make until this file is applied again, and changes nothing.
GRANT SELECT ON ALL TABLES IN SCHEMA :"schema" TO punctual_backup;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA :"schema" TO punctual_backup;
ALTER DEFAULT PRIVILEGES FOR ROLE punctual_owner IN SCHEMA :"schema" GRANT SELECT ON TABLES TO punctual_backup;
ALTER DEFAULT PRIVILEGES FOR ROLE punctual_owner IN SCHEMA :"schema" GRANT SELECT ON SEQUENCES TO punctual_backup;

-- What each process does with each table. Nobody deletes a task, a run or an attempt but by the functions below, which
-- keep what is young, and nobody changes what a run was to call, and when. Whoever notes a change in the audit log cannot seal it, and the beat that seals it changes nothing
-- else. A worker counts a key's tasks, as other apps may delete one, and sees nothing else of keys. A table that is not
-- there yet is passed over.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('punctual_web', 'tasks', 'SELECT, INSERT, UPDATE'),
            ('punctual_web', 'runs', 'SELECT, INSERT, UPDATE (state, reason, held, cancel_reason, finished_at,'
                ' retry_at)'),
            ('punctual_web', 'attempts', 'SELECT, INSERT'),
            ('punctual_web', 'targets', 'SELECT'),
            ('punctual_web', 'answers', 'SELECT, INSERT, UPDATE'),
            ('punctual_web', 'nodes', 'SELECT'),
            ('punctual_web', 'summaries', 'SELECT, INSERT, UPDATE (open, made_at)'),
            ('punctual_web', 'incidents', 'SELECT, INSERT, UPDATE (note, count, reopened, last_at,'
                ' last_slot, closed_at, ending, untold, changed_at)'),
            ('punctual_web', 'durations', 'SELECT'),
            ('punctual_web', 'keys', 'SELECT, INSERT, UPDATE'),
            ('punctual_web', 'audit', 'SELECT, INSERT (at, actor, actor_name, via, address, action, subject,'
                ' subject_id, subject_name, before, after)'),

            ('punctual_beat', 'tasks', 'SELECT, INSERT, UPDATE (state, note, set_aside, next_run_at, last_run_at, run_count,'
                ' updated_at, version, mirrored_version)'),
            ('punctual_beat', 'runs', 'SELECT, INSERT, UPDATE (state, reason, held, cancel_reason, attempt, worker,'
                ' published_at, pack_id, attempt_started_at, finished_at, retry_at, error)'),
            ('punctual_beat', 'attempts', 'SELECT, INSERT'),
            ('punctual_beat', 'targets', 'SELECT'),
            ('punctual_beat', 'answers', 'SELECT (route, key, created_at), DELETE'),
            ('punctual_beat', 'nodes', 'SELECT, INSERT, UPDATE (seen_at, details), DELETE'),
            ('punctual_beat', 'summaries', 'SELECT, INSERT, UPDATE, DELETE'),
            ('punctual_beat', 'incidents', 'SELECT, INSERT, UPDATE, DELETE'),
            ('punctual_beat', 'durations', 'SELECT, INSERT, UPDATE, DELETE'),
            ('punctual_beat', 'audit', 'SELECT, UPDATE (position, previous, hash)'),

            ('punctual_worker', 'tasks', 'SELECT, INSERT, UPDATE'),
            ('punctual_worker', 'runs', 'SELECT, INSERT, UPDATE (state, reason, held, cancel_reason, worker,'
                ' published_at, started_at, attempt_started_at, finished_at, heartbeat_at, retry_at, result, error)'),
            ('punctual_worker', 'attempts', 'SELECT, INSERT'),
            ('punctual_worker', 'targets', 'SELECT, INSERT, UPDATE'),
            ('punctual_worker', 'answers', 'SELECT, INSERT, UPDATE'),
            ('punctual_worker', 'nodes', 'SELECT, INSERT, UPDATE (seen_at, details), DELETE'),
            ('punctual_worker', 'summaries', 'SELECT, INSERT, UPDATE (open, made_at)'),
            ('punctual_worker', 'incidents', 'SELECT, INSERT, UPDATE (note, count, reopened, last_at,'
                ' last_slot, closed_at, ending, untold, changed_at)'),
            ('punctual_worker', 'keys', 'SELECT (id, tasks), UPDATE (tasks)'),
            ('punctual_worker', 'audit', 'SELECT, INSERT (at, actor, actor_name, via, address, action, subject,'
                ' subject_id, subject_name, before, after)')
        ) AS rights (role, name, may)
    LOOP
        IF to_regclass(wanted.name) IS NOT NULL THEN
            EXECUTE format('GRANT %s ON %I TO %I', wanted.may, wanted.name, wanted.role);
        END IF;
    END LOOP;
    -- a beat makes room for the months ahead, and lets go of old ones, by these: it makes and drops no other table
    FOR wanted IN
        SELECT oid::regprocedure AS name FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace
            AND proname IN ('make_partition', 'detach_month', 'drop_month', 'forget_runs', 'forget_tasks')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, punctual_web, punctual_worker', wanted.name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO punctual_beat', wanted.name);
    END LOOP;
END
$$;
COMMIT;
