-- A worker without a process of its own: pg_cron runs it in the database.
-- Run it as the extension's owner, in the database that cron.database_name names.
-- It needs shared_preload_libraries = 'pg_cron'.

create extension if not exists pg_cron;

-- Either: a worker that stays, and a session that calls callbacks. Two jobs start them anew at the
-- next minute whenever they have ended.
select net.schedule_worker();

-- Is it up? The first start is at the next full minute.
select item, ok, detail, hint from net.check() where item in ('worker', 'pg_cron');

-- Take them out again: the jobs, then the sessions that run.
select net.unschedule_worker();
select pg_cancel_backend(pid) from pg_stat_activity
where application_name in ('pgnet worker', 'pgnet callbacks') and datname = current_database();

-- Or: send what is due once a minute. It fits where a delay of a minute is fine, and a session that
-- stays is not.
select cron.schedule('pgnet drain', '* * * * *', 'call net.drain()');

-- Take it out again.
select cron.unschedule('pgnet drain');

-- pg_cron keeps a row for each run; this keeps them for a week.
select cron.schedule('pgnet cron history', '17 3 * * *',
    $$delete from cron.job_run_details where end_time < now() - interval '7 days'$$);
select cron.unschedule('pgnet cron history');
