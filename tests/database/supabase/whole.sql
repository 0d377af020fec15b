-- What a plain pg_dump of such a database has before that: the schema supabase_functions itself. Its function has
-- another body here, which says whether it was replaced.

CREATE SCHEMA supabase_functions;
ALTER SCHEMA supabase_functions OWNER TO supabase_admin;

CREATE FUNCTION supabase_functions.http_request() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'supabase_functions'
    AS $$
begin
    raise exception 'this is the function of the dump';
end
$$;
ALTER FUNCTION supabase_functions.http_request() OWNER TO supabase_functions_admin;

CREATE TABLE supabase_functions.hooks (
    id bigint NOT NULL,
    hook_table_id integer NOT NULL,
    hook_name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    request_id bigint
);
ALTER TABLE supabase_functions.hooks OWNER TO supabase_functions_admin;

REVOKE ALL ON FUNCTION supabase_functions.http_request() FROM PUBLIC;
GRANT ALL ON FUNCTION supabase_functions.http_request() TO anon;
