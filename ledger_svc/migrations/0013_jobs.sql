-- Slow work, scheduled in the commit of the fact that asks for it. Kind and key are unique: scheduling again changes
-- nothing. A job that is being done is due again when its lease ends, so that a killed process loses none.

CREATE TABLE jobs (
  kind         text NOT NULL,
  key          text NOT NULL,
  payload      text NOT NULL CHECK (length(payload) <= 4096),  -- JSON
  due_at       timestamptz NOT NULL,
  attempts     int NOT NULL DEFAULT 0,      -- since it last went well
  claims       bigint NOT NULL DEFAULT 0,   -- ever: who claimed it last holds it
  last_error   text NOT NULL DEFAULT '',    -- a reason or the name of an exception, never its text
  scheduled_at timestamptz NOT NULL DEFAULT now(),
  done_at      timestamptz,
  dead_at      timestamptz,                 -- given up; waits for an operator
  PRIMARY KEY (kind, key),
  CHECK (done_at IS NULL OR dead_at IS NULL)
);
CREATE INDEX jobs_due ON jobs (due_at) WHERE done_at IS NULL AND dead_at IS NULL;
CREATE INDEX jobs_dead ON jobs (kind, key) WHERE dead_at IS NOT NULL;
CREATE INDEX jobs_done ON jobs (done_at) WHERE done_at IS NOT NULL;
GRANT SELECT, INSERT, UPDATE, DELETE ON jobs TO mandate_ledger;
GRANT DELETE ON leases TO mandate_ledger;

CREATE FUNCTION schedule_job(p_kind text, p_key text, p_payload text, p_due timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO jobs (kind, key, payload, due_at) VALUES (p_kind, p_key, p_payload, p_due) ON CONFLICT DO NOTHING;
  RETURN FOUND;
END $$;

-- Claim due jobs, each for a lease. Replicas pass over what another one claims at the moment.
CREATE FUNCTION claim_jobs(p_kinds text[], p_limit int, p_lease_ms int)
RETURNS TABLE (kind text, key text, payload text, attempts int, claim bigint, late_ms bigint) LANGUAGE sql AS $$
  WITH due AS MATERIALIZED (
    SELECT x.kind, x.key, x.due_at FROM jobs x
     WHERE x.done_at IS NULL AND x.dead_at IS NULL AND x.due_at <= now() AND x.kind = ANY (p_kinds)
     ORDER BY x.due_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
  UPDATE jobs j SET due_at = now() + p_lease_ms * interval '1 millisecond', attempts = j.attempts + 1, claims = j.claims + 1
    FROM due d WHERE j.kind = d.kind AND j.key = d.key
  RETURNING j.kind, j.key, j.payload, j.attempts, j.claims, (extract(epoch FROM now() - d.due_at) * 1000)::bigint
$$;

-- Make lapsed holders' holds uncertain, and where the organization has a rule for them, schedule it in the same commit: a
-- gateway that comes back has until then to settle. Returns how many.
CREATE FUNCTION sweep_uncertain(p_org text, p_grace_ms int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_count int; v_seq bigint;
BEGIN
  v_count := mark_uncertain(p_org);
  IF v_count > 0 AND coalesce((SELECT uncertain FROM rules WHERE organization_id = p_org ORDER BY version DESC LIMIT 1), 'list') <> 'list' THEN
    SELECT max(seq) INTO v_seq FROM audit WHERE organization_id = p_org;
    PERFORM schedule_job('holds.resolve', p_org || '/' || v_seq, '{"organization_id":' || to_json(p_org) || '}',
                         now() + p_grace_ms * interval '1 millisecond');
  END IF;
  RETURN v_count;
END $$;

-- An organization's holds that wait for a decision, the longest first.
CREATE FUNCTION undecided_holds(p_org text) RETURNS TABLE (request_id text, since timestamptz) LANGUAGE sql STABLE AS $$
  SELECT o.request_id, o.decided_at FROM outcomes o
   WHERE o.organization_id = p_org AND o.phase = 'uncertain' AND end_of(p_org, o.request_id) = 'uncertain'
   ORDER BY o.decided_at, o.request_id
$$;

-- Decide uncertain holds by the organization's rule, at most 500 a call, once they have been uncertain for the grace. Says
-- how many were decided, and whether some wait for the rule still.
CREATE FUNCTION resolve_by_rule(p_org text, p_grace_ms int, OUT decided int, OUT waits boolean) LANGUAGE plpgsql AS $$
DECLARE v_rule text; v_until timestamptz; v_request text;
BEGIN
  PERFORM lock_organization(p_org);
  v_until := ledger_time(p_org) - p_grace_ms * interval '1 millisecond';
  SELECT uncertain INTO v_rule FROM rules WHERE organization_id = p_org ORDER BY version DESC LIMIT 1;
  decided := 0; waits := false;
  IF v_rule IS NULL OR v_rule = 'list' THEN RETURN; END IF;
  FOR v_request IN SELECT request_id FROM undecided_holds(p_org) WHERE since <= v_until LIMIT 500 LOOP
    -- No request id has a slash, so that nobody can have used this key before.
    PERFORM resolve_hold(p_org, 'rule/' || v_request, v_request, CASE v_rule WHEN 'release' THEN 0 END, 'rule:' || v_rule,
                         'the organization''s rule');
    decided := decided + 1;
  END LOOP;
  waits := EXISTS (SELECT 1 FROM undecided_holds(p_org));
END $$;

-- Forget the leases of holders long gone that left nothing open, at most 1,000 a call. Returns how many.
CREATE FUNCTION prune_leases(p_before timestamptz) RETURNS bigint LANGUAGE sql AS $$
  WITH gone AS (
    DELETE FROM leases WHERE holder_id IN (
      SELECT l.holder_id FROM leases l
       WHERE l.lapsed_at < p_before AND NOT EXISTS (SELECT 1 FROM open_holds o WHERE o.holder_id = l.holder_id) LIMIT 1000)
    RETURNING 1)
  SELECT count(*) FROM gone
$$;

-- Forget jobs that are done, at most 5,000 a call; dead ones stay. Returns how many.
CREATE FUNCTION prune_jobs(p_before timestamptz) RETURNS bigint LANGUAGE sql AS $$
  WITH gone AS (
    DELETE FROM jobs WHERE (kind, key) IN (SELECT j.kind, j.key FROM jobs j WHERE j.done_at < p_before ORDER BY j.done_at LIMIT 5000)
    RETURNING 1)
  SELECT count(*) FROM gone
$$;
