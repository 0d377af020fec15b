-- A dump of a project, in the form in which `supabase db dump` writes one: the schema supabase_functions is Supabase's
-- own, and is not part of it. Made for this test, after the interface of the triggers. localhost:9 stands for the
-- receiver.

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';
SET default_table_access_method = "heap";

CREATE TYPE "public"."order_state" AS ENUM ('new', 'paid');

CREATE TABLE IF NOT EXISTS "public"."orders" (
    "id" bigint NOT NULL,
    "item" "text" NOT NULL,
    "state" "public"."order_state" DEFAULT 'new'::"public"."order_state" NOT NULL,
    "tags" "text"[],
    "ordered_at" timestamp with time zone DEFAULT "now"() NOT NULL
);

ALTER TABLE "public"."orders" OWNER TO "postgres";

CREATE TABLE IF NOT EXISTS "public"."Customers" (
    "id" "uuid" DEFAULT "gen_random_uuid"() NOT NULL,
    "Full Name" "text",
    "settings" "jsonb"
);

ALTER TABLE "public"."Customers" OWNER TO "postgres";

ALTER TABLE ONLY "public"."orders"
    ADD CONSTRAINT "orders_pkey" PRIMARY KEY ("id");

CREATE OR REPLACE TRIGGER "customer_removed" AFTER DELETE ON "public"."Customers" FOR EACH ROW EXECUTE FUNCTION "supabase_functions"."http_request"('http://localhost:9/customers?source=db', 'GET', '{"X-Kind":"removed"}', '{"reason":"asked & done"}', '5000');

CREATE OR REPLACE TRIGGER "order_hook" AFTER INSERT OR DELETE OR UPDATE ON "public"."orders" FOR EACH ROW EXECUTE FUNCTION "supabase_functions"."http_request"('http://localhost:9/orders', 'POST', '{"Content-type":"application/json","Authorization":"Bearer a-token-of-the-project"}', '{}', '1000');

CREATE OR REPLACE TRIGGER "order_paid" AFTER UPDATE OF "state" ON "public"."orders" FOR EACH ROW WHEN ((("old"."state" IS DISTINCT FROM "new"."state") AND ("new"."state" = 'paid'::"public"."order_state"))) EXECUTE FUNCTION "supabase_functions"."http_request"('http://localhost:9/paid', 'POST', '{"Content-type":"application/json"}', '{}', '3000');

ALTER TABLE "public"."orders" ENABLE ROW LEVEL SECURITY;

CREATE POLICY "Everybody may order" ON "public"."orders" USING (true) WITH CHECK (true);

GRANT USAGE ON SCHEMA "public" TO "anon";
GRANT ALL ON TABLE "public"."orders" TO "anon";
GRANT ALL ON TABLE "public"."Customers" TO "anon";

RESET ALL;
