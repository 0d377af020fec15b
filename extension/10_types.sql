-- Types. Names and fields of the first four are pg_net's: grants and callers name them.

create domain net.http_method as text
    constraint http_method_is_a_token
    check (value operator(pg_catalog.~) '^[!#$%&''*+.^_`|~0-9A-Za-z-]+$');
comment on domain net.http_method is
    'An HTTP method: any token of RFC 9110, section 5.6.2. Requests are sent with it in upper '
    'case.';

create type net.request_status as enum ('PENDING', 'SUCCESS', 'ERROR');
comment on type net.request_status is
    'The status that net.http_get_result gives for a request: PENDING (on its way), SUCCESS (there '
    'was an answer), ERROR (there was none).';

create type net.http_response as (
    status_code integer,
    headers jsonb,
    body text
);
comment on type net.http_response is
    'An answer of an HTTP server, as net.http_get_result returns it.';

create type net.http_response_result as (
    status net.request_status,
    message text,
    response net.http_response
);
comment on type net.http_response_result is
    'The result of net.http_get_result: status, message (ok, or the error), and the response where '
    'there is one.';

create type net.request_state as enum (
    'scheduled', 'ready', 'in_flight', 'retrying',
    'succeeded', 'failed', 'unknown', 'cancelled', 'expired'
);
comment on type net.request_state is
    'The state of a request: scheduled, ready, in_flight and retrying are on the way; succeeded, '
    'failed, unknown, cancelled and expired are ends.';

create type net.outcome as (
    id bigint,
    state net.request_state,
    status_code integer,
    headers jsonb,
    content text,
    content_bytes bytea,
    error_msg text,
    attempts integer,
    context jsonb
);
comment on type net.outcome is
    'How a request stands or ended: content is the body as text, content_bytes where it is no '
    'text; attempts made so far; context as given with the request.';

-- An enum and not a text: a caller can insert nothing else.
create type pgnet.gate as enum ('new', 'key', 'ids');
comment on type pgnet.gate is
    'Why a request is kept from being ready: no worker has examined its ordering key and the ids '
    'that it comes after (new), another request of its key goes first (key), or requests that it '
    'comes after have not ended (ids).';
