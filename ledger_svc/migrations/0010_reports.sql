-- Usage in sums, so that reports over millions of completions are quick. Everything here is derived from `usage`: a
-- report adds the rows after the cursor to the sums, and sums may be dropped and built again at any time.

-- Up to where an organization's usage is in its sums, under the generation that its subjects carry.
CREATE TABLE report_cursors (
  organization_id text PRIMARY KEY,
  generation      int NOT NULL DEFAULT 1,
  seq             bigint NOT NULL DEFAULT 0
);

-- Names as numbers: whose sums, and whose share in them. Subjects of an earlier generation are swept away with their sums.
CREATE TABLE report_subjects (
  id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  organization_id text NOT NULL,
  generation      int NOT NULL,
  kind            smallint NOT NULL CHECK (kind BETWEEN 1 AND 7),
    -- 1 organization, 2 workspace, 3 agent group, 4 agent, 5 provider/model, 6 end user, 7 API key
  name            text NOT NULL,
  UNIQUE (organization_id, generation, kind, name)
);

-- What a node and everything below it used in a slot of time. All zones of today are whole quarters of an hour from UTC,
-- so slots of 15 minutes serve each of them; those of 60 and 1440 hold the same for the inner part of a period.
CREATE TABLE usage_sums (
  subject_id          bigint NOT NULL,
  grain_minutes       int NOT NULL CHECK (grain_minutes IN (15, 60, 1440)),
  slot                timestamptz NOT NULL,
  first_seq           bigint NOT NULL,
  last_seq            bigint NOT NULL,
  requests            bigint NOT NULL,
  input_tokens        bigint NOT NULL,
  cached_input_tokens bigint NOT NULL,
  cache_write_tokens  bigint NOT NULL,
  output_tokens       bigint NOT NULL,
  reasoning_tokens    bigint NOT NULL,
  charged_micros      bigint NOT NULL,
  breach_micros       bigint NOT NULL,
  estimated           bigint NOT NULL,
  client_gone         bigint NOT NULL,
  upstream_errors     bigint NOT NULL,
  upstream_cuts       bigint NOT NULL,
  status_4xx          bigint NOT NULL,
  status_5xx          bigint NOT NULL,
  latency_ms          bigint NOT NULL,
  overhead_ms         bigint NOT NULL,
  streamed            bigint NOT NULL,   -- requests that have a time to the first token
  first_token_ms      bigint NOT NULL,
  latencies           int[] NOT NULL,    -- requests by latency, in the classes of ledger_svc/latencies.py
  PRIMARY KEY (subject_id, grain_minutes, slot)
) WITH (fillfactor = 85);   -- the newest slots are updated in place again and again

-- The same by quarters of an hour in a row a day, for reports that look at every hour of months: a few rows each, where
-- sums of single slots lie about in as many places.
CREATE TABLE usage_activity (
  subject_id     bigint NOT NULL,
  day            timestamptz NOT NULL,  -- in UTC
  requests       bigint[] NOT NULL,     -- 96 each
  tokens         bigint[] NOT NULL,
  charged_micros bigint[] NOT NULL,
  PRIMARY KEY (subject_id, day)
) WITH (fillfactor = 85);

CREATE FUNCTION add_quarters(p_one bigint[], p_other bigint[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS $$
  SELECT array_agg(one + other ORDER BY place) FROM unnest(p_one, p_other) WITH ORDINALITY q(one, other, place)
$$;

-- Who had which share of a node's usage in a slot: the agents below it, the models, users, keys.
CREATE TABLE usage_shares (
  subject_id     bigint NOT NULL,
  kind           smallint NOT NULL,
  grain_minutes  int NOT NULL CHECK (grain_minutes IN (60, 1440)),
  slot           timestamptz NOT NULL,
  member_id      bigint NOT NULL,
  requests       bigint NOT NULL,
  tokens         bigint NOT NULL,
  charged_micros bigint NOT NULL,
  PRIMARY KEY (subject_id, kind, grain_minutes, slot, member_id)
) WITH (fillfactor = 80);

GRANT SELECT, INSERT, UPDATE, DELETE ON report_cursors, report_subjects, usage_sums, usage_activity, usage_shares
  TO mandate_ledger;

-- The kind of a node, by its id.
CREATE FUNCTION report_kind(p_node text) RETURNS smallint LANGUAGE sql IMMUTABLE AS $$
  SELECT (CASE split_part(p_node, '_', 1) WHEN 'org' THEN 1 WHEN 'ws' THEN 2 WHEN 'grp' THEN 3 ELSE 4 END)::smallint
$$;

-- Build an organization's sums anew: at once for reports, by and by for the worker.
CREATE FUNCTION rebuild_reports(p_org text) RETURNS void LANGUAGE sql AS $$
  UPDATE report_cursors SET generation = generation + 1, seq = 0 WHERE organization_id = p_org
$$;

-- What a change of the rules asked for; NULL where it left a value alone.
ALTER TABLE rules ADD COLUMN asked_time_zone text, ADD COLUMN asked_uncertain text, ADD COLUMN asked_default_price text;

-- Add a version of an organization's rules. NULL leaves a value as it is. `field` names what differs from an earlier
-- request under the same key; '' when the change was made, or had been.
CREATE FUNCTION change_rules(
  p_org text, p_key text, p_zone text, p_uncertain text, p_price text, p_actor text, OUT field text
) LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v rules; done rules;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  field := '';
  SELECT * INTO done FROM rules r WHERE r.organization_id = p_org AND r.request_id = p_key;
  IF FOUND THEN
    field := CASE WHEN done.asked_time_zone IS DISTINCT FROM p_zone THEN 'time_zone'
                  WHEN done.asked_uncertain IS DISTINCT FROM p_uncertain THEN 'uncertain_holds'
                  WHEN done.asked_default_price IS DISTINCT FROM p_price THEN 'default_price' ELSE '' END;
    RETURN;
  END IF;
  SELECT * INTO v FROM rules r WHERE r.organization_id = p_org ORDER BY r.version DESC LIMIT 1;
  v.version := coalesce(v.version, 0) + 1;
  v.time_zone := coalesce(p_zone, v.time_zone, 'UTC');
  v.uncertain := coalesce(p_uncertain, v.uncertain, 'list');
  v.default_price := coalesce(p_price, v.default_price, '');
  INSERT INTO rules (organization_id, version, time_zone, uncertain, default_price, request_id, actor, recorded_at,
                     asked_time_zone, asked_uncertain, asked_default_price)
    VALUES (p_org, v.version, v.time_zone, v.uncertain, v.default_price, p_key, p_actor, v_at, p_zone, p_uncertain, p_price);
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['rules.changed'], ARRAY[p_org],
    ARRAY['{"default_price":' || to_json(v.default_price) || ',"time_zone":' || to_json(v.time_zone) || ',"uncertain_holds":'
          || to_json(v.uncertain) || ',"version":' || v.version || '}']);
END $$;
