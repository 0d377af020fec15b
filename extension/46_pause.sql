-- Pauses: hosts whose requests wait until somebody resumes them.

create table pgnet.pause (
    host text primary key,
    since timestamptz not null default pg_catalog.clock_timestamp(),
    paused_by regrole not null default pg_catalog.quote_ident(current_user)::pg_catalog.regrole,
    reason text
);
comment on table pgnet.pause is
    'Hosts whose requests wait, by net.pause until net.resume: an authority as in a URL, a name for '
    'all its ports, or * for all hosts.';
