-- What every posting function stands on. Each of them takes the organization's lock in a statement of its own, before it
-- reads anything: a statement's snapshot is taken when it starts, so a lock and a read in one statement would read what
-- was true before the wait.

CREATE FUNCTION lock_organization(p_org text) RETURNS void LANGUAGE sql AS $$
  SELECT pg_advisory_xact_lock(7101, hashtext(p_org))
$$;

-- The organization's time never goes back: the last fact's time, or the clock's once the lock is held.
CREATE FUNCTION ledger_time(p_org text) RETURNS timestamptz LANGUAGE sql AS $$
  SELECT greatest(clock_timestamp(), (SELECT recorded_at FROM audit WHERE organization_id = p_org ORDER BY seq DESC LIMIT 1))
$$;

CREATE FUNCTION time_zone_of(p_org text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT coalesce((SELECT time_zone FROM rules WHERE organization_id = p_org ORDER BY version DESC LIMIT 1), 'UTC')
$$;

CREATE FUNCTION window_start(p_period text, p_at timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE p_period
    WHEN 'daily' THEN date_trunc('day', p_at, 'UTC')
    WHEN 'monthly' THEN date_trunc('month', p_at, 'UTC')
    ELSE timestamptz '2000-01-01 00:00:00+00'
  END
$$;

-- Return an organization's own account of a kind, made when it is missing.
CREATE FUNCTION account_of(p_org text, p_kind text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint;
BEGIN
  SELECT id INTO v_id FROM accounts
    WHERE organization_id = p_org AND kind = p_kind AND budget_id IS NULL AND window_start IS NULL;
  IF v_id IS NULL THEN
    INSERT INTO accounts (organization_id, kind, opened_at) VALUES (p_org, p_kind, clock_timestamp()) RETURNING id INTO v_id;
    INSERT INTO checkpoints (account_id, version, settled_micros, held_micros) VALUES (v_id, 1, 0, 0);
  END IF;
  RETURN v_id;
END $$;

-- Recompute an account's balance from the facts alone; the answer when no checkpoint is there.
CREATE FUNCTION recount(p_account bigint, OUT settled bigint, OUT held bigint) LANGUAGE plpgsql AS $$
DECLARE a accounts;
BEGIN
  SELECT * INTO STRICT a FROM accounts WHERE id = p_account;
  SELECT a.opening_micros + coalesce(sum(e.amount_micros), 0) INTO settled
    FROM entries e WHERE e.organization_id = a.organization_id AND e.account_id = p_account;
  SELECT coalesce(sum(h.ceiling_micros), 0) INTO held
    FROM holds h
    WHERE h.organization_id = a.organization_id AND h.status = 1
      AND (p_account = ANY (h.limits) OR EXISTS (
        SELECT 1 FROM hold_links l WHERE l.organization_id = h.organization_id AND l.request_id = h.request_id AND l.account_id = p_account))
      AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.organization_id = h.organization_id AND o.request_id = h.request_id);
END $$;

-- The balance of an account: its last checkpoint, else a recount.
CREATE FUNCTION balance_of(p_account bigint, OUT settled bigint, OUT held bigint, OUT version bigint) LANGUAGE plpgsql STRICT AS $$
BEGIN
  SELECT c.settled_micros, c.held_micros, c.version INTO settled, held, version
    FROM checkpoints c WHERE c.account_id = p_account ORDER BY c.version DESC LIMIT 1;
  IF version IS NULL THEN
    SELECT r.settled, r.held, 0 INTO settled, held, version FROM recount(p_account) r;
  END IF;
END $$;

-- Extend the organization's chain by one line for each fact. Details are JSON objects already.
CREATE FUNCTION append_audit(p_org text, p_at timestamptz, p_actor text[], p_action text[], p_subject text[], p_detail text[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_seq bigint; v_hash bytea; v_line text; i int;
  v_lines text[] := '{}'; v_hashes bytea[] := '{}';
  v_time text := to_char(p_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
BEGIN
  IF cardinality(p_action) = 0 THEN RETURN; END IF;
  SELECT seq, hash INTO v_seq, v_hash FROM audit WHERE organization_id = p_org ORDER BY seq DESC LIMIT 1;
  v_seq := coalesce(v_seq, 0);
  v_hash := coalesce(v_hash, sha256(convert_to(p_org, 'UTF8')));
  FOR i IN 1..cardinality(p_action) LOOP
    v_line := '{"action":' || to_json(p_action[i]) || ',"actor":' || to_json(p_actor[i]) || ',"detail":' || p_detail[i]
      || ',"organization":' || to_json(p_org) || ',"seq":' || (v_seq + i) || ',"subject":' || to_json(p_subject[i])
      || ',"time":"' || v_time || '"}';
    v_hash := sha256(v_hash || convert_to(v_line, 'UTF8'));
    v_lines[i] := v_line;
    v_hashes[i] := v_hash;
  END LOOP;
  INSERT INTO audit (organization_id, seq, line, hash, recorded_at)
    SELECT p_org, v_seq + o, l, h, p_at FROM unnest(v_lines, v_hashes) WITH ORDINALITY t(l, h, o);
END $$;

-- Post one transfer between accounts of the organization and write both checkpoints; the caller holds the lock.
CREATE FUNCTION post_transfer(
  p_org text, p_key text, p_phase text, p_kind text, p_debit bigint, p_credit bigint, p_amount bigint,
  p_limits bigint[], p_direction smallint, p_actor text, p_reason text, p_at timestamptz
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_seq bigint; v_account bigint; v_change bigint; b record;
BEGIN
  SELECT coalesce(max(seq), 0) + 1 INTO v_seq FROM transfers WHERE organization_id = p_org;
  INSERT INTO transfers (organization_id, seq, key, phase, kind, debit, credit, amount_micros, limits, direction, actor, reason, posted_at)
    VALUES (p_org, v_seq, p_key, p_phase, p_kind, p_debit, p_credit, p_amount, p_limits, p_direction, p_actor, p_reason, p_at);
  -- A recount sees the row that was just inserted, so its change is then in the balance already.
  FOR v_account, v_change IN
    SELECT a, c FROM (SELECT p_debit, -p_amount UNION ALL SELECT p_credit, p_amount
                      UNION ALL SELECT unnest(p_limits), p_amount * p_direction) t(a, c)
  LOOP
    SELECT * INTO b FROM balance_of(v_account);
    INSERT INTO checkpoints (account_id, version, settled_micros, held_micros)
      VALUES (v_account, b.version + 1, b.settled + CASE WHEN b.version = 0 THEN 0 ELSE v_change END, b.held);
  END LOOP;
  RETURN v_seq;
END $$;

-- Lower what an account holds for a hold that is over; the caller holds the lock.
CREATE FUNCTION release_held(p_accounts bigint[], p_amount bigint) RETURNS void LANGUAGE sql AS $$
  INSERT INTO checkpoints (account_id, version, settled_micros, held_micros)
    SELECT a, b.version + 1, b.settled, b.held - CASE WHEN b.version = 0 THEN 0 ELSE p_amount END
    FROM unnest(p_accounts) a CROSS JOIN LATERAL balance_of(a) b
$$;

-- The budgets' accounts among a hold's limits, those linked later included.
CREATE FUNCTION budget_limits(p_org text, p_request text, p_limits bigint[]) RETURNS bigint[] LANGUAGE sql AS $$
  SELECT p_limits[2:] || coalesce((SELECT array_agg(account_id ORDER BY account_id) FROM hold_links
                                   WHERE organization_id = p_org AND request_id = p_request), '{}')
$$;
