-- JSON and its lengths: how long a value is as text, without writing it out in order to see that.

-- Whether a value is written out as quickly as it is read: it is short, and has no number that is
-- much longer as text. In jsonb the 131,072 digits of 1e131071 take ten bytes.
create function pgnet.is_plain_json(value jsonb)
    returns boolean
    language sql stable parallel safe cost 1
as $$
    select pg_catalog.pg_column_compression(value) is null
        -- An empty object has 5 bytes, and no number has room in 10.
        and (pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 10
            or pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 8000
                and not value operator(pg_catalog.@?) '$.** ? (@.type() == "number")'
            or pg_catalog.pg_column_size(value) operator(pg_catalog.<=) 160
                and not value operator(pg_catalog.@?) '$.** ? (@ > 1e40 || @ < -1e40)')
$$;
comment on function pgnet.is_plain_json(jsonb) is
    'Whether a value is about as long as text as it is in the table. NULL gives NULL.';

-- How many bytes a value is as text, at most. Read from how it is stored, without unpacking it:
-- pglz makes 90 bytes of one at most, lz4 255. What is longer than pgnet.json_text writes out
-- counts nothing: it is not written out.
create function pgnet.json_size(value jsonb)
    returns bigint
    language sql stable parallel safe cost 1
as $$
    select case
        when value is null then 0
        when pgnet.is_plain_json(value) then pg_catalog.pg_column_size(value)
        when pg_catalog.pg_column_compression(value) operator(pg_catalog.=) 'pglz'
            then pg_catalog.pg_column_size(value)::bigint operator(pg_catalog.*) 90
        when pg_catalog.pg_column_compression(value) is not null
            then pg_catalog.pg_column_size(value)::bigint operator(pg_catalog.*) 255
        when pg_catalog.pg_column_size(value) operator(pg_catalog.>) 2500000 then 0
        else 2500000
        end
$$;
comment on function pgnet.json_size(jsonb) is
    'How many bytes of text a claim counts for a value, at most; 0 for NULL.';

-- The text of a value, as `value::text`; NULL where it is longer than at_most bytes, nested so
-- deeply that it cannot be read, or has no form in UTF-8. Nothing that is too long is written out
-- in order to see that.
create function pgnet.json_text(value jsonb, at_most integer default 2500000)
    returns text
    language plpgsql stable parallel unsafe cost 1000
    set search_path = pg_catalog, pg_temp
as $$
declare
    unpacked bigint;
    digits bigint;
    written text;
begin
    if value is null or pg_column_size(value) > at_most then
        return null;
    end if;
    unpacked := pg_column_size(jsonb_build_array(value));
    if unpacked > 2::bigint * at_most then
        return null;
    end if;
    -- A number has up to 131,072 digits before the point, and as many behind it as its scale says.
    select sum(case when abs(n.number) < 1e40 then 40 else 131072 end + scale(n.number)) into digits
    from (
        select v.value::numeric as number
        from jsonb_path_query(value, '$.** ? (@.type() == "number")') v (value)
    ) n;
    if digits > 4::bigint * at_most then
        return null;
    end if;
    written := value::text;
    return case when octet_length(written) <= at_most and octet_length(convert_to(written, 'UTF8')) > 0 then written end;
exception
    when statement_too_complex or program_limit_exceeded or character_not_in_repertoire or untranslatable_character then
        return null;
end
$$;
comment on function pgnet.json_text(jsonb, integer) is
    'The value as text; NULL where that is longer than at_most bytes, nested too deeply to be '
    'read, or has no form in UTF-8.';
