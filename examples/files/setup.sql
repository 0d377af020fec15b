-- Presigned URLs by Amazon's signature, version 4. It needs the table s3.account, and pgcrypto's
-- function hmac in the schema public.

-- One step of the key's derivation; the last one signs.
create function s3.hmac(key bytea, message text)
    returns bytea
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$ select public.hmac(convert_to(message, 'UTF8'), key, 'sha256') $$;

create function s3.presign(
    -- GET, PUT, HEAD or DELETE
    method text,
    -- the object's key, without a leading slash
    object text,
    -- in seconds, a week at most
    expires integer default 300,
    signed_at timestamptz default now()
)
    returns text
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    account s3.account;
    stamp text := to_char(signed_at at time zone 'UTC', 'YYYYMMDD"T"HH24MISS"Z"');
    scope text;
    query text;
    path text;
    request text;
    key bytea;
begin
    select * into strict account from s3.account;
    scope := concat_ws('/', left(stamp, 8), account.region, 's3', 'aws4_request');
    path := regexp_replace(account.base_url, '^https?://[^/]+', '') || '/' || (
        select string_agg(net._urlencode_string(part), '/' order by place)
        from unnest(string_to_array(object, '/')) with ordinality p (part, place));
    -- In the order of the names, as the signature asks for it.
    query := concat('X-Amz-Algorithm=AWS4-HMAC-SHA256',
        '&X-Amz-Credential=', net._urlencode_string(account.access_key || '/' || scope),
        '&X-Amz-Date=', stamp, '&X-Amz-Expires=', expires, '&X-Amz-SignedHeaders=host');
    request := concat_ws(E'\n', method, path, query, 'host:' || split_part(account.base_url, '/', 3), '', 'host', 'UNSIGNED-PAYLOAD');
    key := convert_to('AWS4' || account.secret_key, 'UTF8');
    key := s3.hmac(s3.hmac(s3.hmac(s3.hmac(key, left(stamp, 8)), account.region), 's3'), 'aws4_request');
    return concat(substring(account.base_url, '^https?://[^/]+'), path, '?', query, '&X-Amz-Signature=', encode(s3.hmac(key,
        concat_ws(E'\n', 'AWS4-HMAC-SHA256', stamp, scope, encode(sha256(convert_to(request, 'UTF8')), 'hex'))), 'hex'));
end
$$;
revoke execute on function s3.presign(text, text, integer, timestamptz) from public;
