-- What every posting function stands on. Each of them takes the organization's lock in a statement of its own, before it
-- reads anything: a statement's snapshot is taken when it starts, so a lock and a read in one statement would read what
-- was true before the wait.

CREATE FUNCTION lock_organization(p_org text) RETURNS void LANGUAGE sql AS $$
  SELECT pg_advisory_xact_lock(7101, hashtext(p_org))
$$;

-- The organization's time goes forward only: the clock's once the lock is held, or just after the last commit's.
CREATE FUNCTION ledger_time(p_org text) RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE v_wallet bigint; v_told timestamptz; v_moved timestamptz;
BEGIN
  SELECT recorded_at INTO v_told FROM audit WHERE organization_id = p_org ORDER BY seq DESC LIMIT 1;
  SELECT id INTO v_wallet FROM accounts WHERE organization_id = p_org AND kind = 'wallet' AND budget_id IS NULL AND window_start IS NULL;
  SELECT at INTO v_moved FROM checkpoints WHERE account_id = v_wallet ORDER BY at DESC, step DESC LIMIT 1;
  RETURN greatest(clock_timestamp(), v_told + interval '1 microsecond', v_moved + interval '1 microsecond');
END $$;

CREATE FUNCTION time_zone_of(p_org text) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT coalesce((SELECT time_zone FROM rules WHERE organization_id = p_org ORDER BY version DESC LIMIT 1), 'UTC')
$$;

CREATE FUNCTION window_start(p_period text, p_at timestamptz, p_zone text) RETURNS timestamptz LANGUAGE sql STABLE AS $$
  SELECT CASE p_period
    WHEN 'daily' THEN date_trunc('day', p_at, p_zone)
    WHEN 'monthly' THEN date_trunc('month', p_at, p_zone)
    ELSE timestamptz '2000-01-01 00:00:00+00'
  END
$$;

CREATE FUNCTION window_end(p_period text, p_at timestamptz, p_zone text) RETURNS timestamptz LANGUAGE sql STABLE AS $$
  SELECT CASE p_period
    WHEN 'daily' THEN (date_trunc('day', p_at AT TIME ZONE p_zone) + interval '1 day') AT TIME ZONE p_zone
    WHEN 'monthly' THEN (date_trunc('month', p_at AT TIME ZONE p_zone) + interval '1 month') AT TIME ZONE p_zone
    ELSE 'infinity'
  END
$$;

-- The window of a period that a moment is in. A new time zone counts from the end of the window that runs when it is set,
-- so that windows never overlap and nothing is counted twice; the first window after may be short.
CREATE FUNCTION window_of(p_org text, p_period text, p_at timestamptz, OUT starts timestamptz, OUT ends timestamptz) LANGUAGE plpgsql STABLE AS $$
DECLARE v_zone text := 'UTC'; v_since timestamptz := '-infinity'; v_from timestamptz; r record;
BEGIN
  FOR r IN SELECT time_zone, recorded_at FROM rules WHERE organization_id = p_org ORDER BY version LOOP
    IF r.time_zone <> v_zone THEN
      v_from := CASE WHEN r.recorded_at <= v_since THEN v_since ELSE window_end(p_period, r.recorded_at, v_zone) END;
      EXIT WHEN v_from > p_at;
      v_zone := r.time_zone; v_since := v_from;
    END IF;
  END LOOP;
  starts := greatest(window_start(p_period, p_at, v_zone), v_since);
  ends := window_end(p_period, p_at, v_zone);
  IF starts > p_at THEN  -- before the second of two midnights, where clocks go back over midnight
    ends := starts;
    starts := greatest(window_start(p_period, p_at - interval '3 hours', v_zone), v_since);
  END IF;
END $$;

-- Return an organization's own account of a kind, made when it is missing.
CREATE FUNCTION account_of(p_org text, p_kind text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint;
BEGIN
  SELECT id INTO v_id FROM accounts
    WHERE organization_id = p_org AND kind = p_kind AND budget_id IS NULL AND window_start IS NULL;
  IF v_id IS NULL THEN
    INSERT INTO accounts (organization_id, kind, opened_at) VALUES (p_org, p_kind, clock_timestamp()) RETURNING id INTO v_id;
    PERFORM open_checkpoint(v_id, '-infinity', 0);
  END IF;
  RETURN v_id;
END $$;

CREATE FUNCTION last_seq(p_org text) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN coalesce((SELECT seq FROM transfers WHERE organization_id = p_org ORDER BY seq DESC LIMIT 1), 0);
END $$;

-- What a budget's accounts may fall to; every other account is free, and the wallet stops at 0.
CREATE FUNCTION rule_of(p_budget text, OUT floor bigint, OUT disabled boolean, OUT auto_disable boolean) LANGUAGE sql AS $$
  SELECT coalesce(-v.limit_micros, 0), coalesce(v.disabled, false), coalesce(v.auto_disable, false)
    FROM (SELECT 1) one
    LEFT JOIN LATERAL (SELECT * FROM budget_versions z WHERE z.budget_id = p_budget ORDER BY z.version DESC LIMIT 1) v ON true
$$;

-- The first checkpoint of a new account, with what it held when it was made.
CREATE FUNCTION open_checkpoint(p_account bigint, p_at timestamptz, p_held bigint) RETURNS void LANGUAGE sql AS $$
  INSERT INTO checkpoints (account_id, at, step, transfer_seq, settled_micros, held_micros, floor_micros, disabled, auto_disable)
    SELECT p_account, p_at, 0, last_seq(a.organization_id), a.opening_micros, p_held, r.floor, r.disabled, r.auto_disable
      FROM accounts a CROSS JOIN LATERAL rule_of(a.budget_id) r WHERE a.id = p_account
$$;

-- Recompute every balance of an organization from the facts alone.
CREATE FUNCTION recount(p_org text) RETURNS TABLE (account_id bigint, settled bigint, held bigint) LANGUAGE sql AS $$
  WITH moved AS (
    SELECT debit AS account, -sum(amount_micros) AS amount FROM transfers WHERE organization_id = p_org GROUP BY debit
    UNION ALL
    SELECT credit, sum(amount_micros) FROM transfers WHERE organization_id = p_org GROUP BY credit
    UNION ALL
    SELECT unnest(s.accounts[2:]), t.amount
      FROM (SELECT limit_set, sum(amount_micros * direction) AS amount FROM transfers
             WHERE organization_id = p_org AND limit_set <> 0 GROUP BY limit_set) t
      JOIN limit_sets s ON s.id = t.limit_set
  ), open AS (
    SELECT h.request_id, h.ceiling_micros, h.limit_set FROM holds h
     WHERE h.organization_id = p_org AND h.status = 1
       AND NOT EXISTS (SELECT 1 FROM usage u WHERE u.organization_id = p_org AND u.request_id = h.request_id)
       AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.organization_id = p_org AND o.request_id = h.request_id)
  ), kept AS (
    SELECT unnest(s.accounts) AS account, o.amount
      FROM (SELECT limit_set, sum(ceiling_micros) AS amount FROM open GROUP BY limit_set) o JOIN limit_sets s ON s.id = o.limit_set
    UNION ALL
    SELECT l.account_id, o.ceiling_micros FROM hold_links l JOIN open o USING (request_id) WHERE l.organization_id = p_org
  )
  SELECT a.id, a.opening_micros + coalesce(m.amount, 0)::bigint, coalesce(k.amount, 0)::bigint
    FROM accounts a
    LEFT JOIN (SELECT account, sum(amount) AS amount FROM moved GROUP BY account) m ON m.account = a.id
    LEFT JOIN (SELECT account, sum(amount) AS amount FROM kept GROUP BY account) k ON k.account = a.id
   WHERE a.organization_id = p_org
$$;

-- Write a checkpoint for each account that lost its own; the caller holds the lock and has posted nothing yet.
CREATE FUNCTION restore_checkpoints(p_org text, p_at timestamptz) RETURNS void LANGUAGE sql AS $$
  INSERT INTO checkpoints (account_id, at, step, transfer_seq, settled_micros, held_micros, floor_micros, disabled, auto_disable)
    SELECT r.account_id, p_at - interval '1 microsecond', 0, last_seq(p_org), r.settled, r.held, v.floor, v.disabled, v.auto_disable
      FROM recount(p_org) r JOIN accounts a ON a.id = r.account_id CROSS JOIN LATERAL rule_of(a.budget_id) v
     WHERE NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.account_id = r.account_id)
$$;

-- See to it that accounts have checkpoints before a commit writes anything about them; the caller holds the lock.
-- It has planner settings of its own, as everything has that walks call: theirs would make it read all checkpoints.
CREATE FUNCTION ensure_checkpoints(p_org text, p_accounts bigint[], p_at timestamptz) RETURNS void LANGUAGE plpgsql
SET enable_nestloop = on SET enable_seqscan = off AS $$
BEGIN
  IF EXISTS (SELECT 1 FROM unnest(p_accounts) a(id)
              LEFT JOIN LATERAL (SELECT 1 AS one FROM checkpoints x WHERE x.account_id = a.id LIMIT 1) c ON true WHERE c.one IS NULL) THEN
    PERFORM restore_checkpoints(p_org, p_at);
  END IF;
END $$;

-- The balance of an account: its last checkpoint, else a recount.
CREATE FUNCTION balance_of(p_account bigint, OUT settled bigint, OUT held bigint) LANGUAGE plpgsql STRICT AS $$
BEGIN
  SELECT c.settled_micros, c.held_micros INTO settled, held
    FROM checkpoints c WHERE c.account_id = p_account ORDER BY c.at DESC, c.step DESC LIMIT 1;
  IF settled IS NULL THEN
    SELECT r.settled, r.held INTO settled, held
      FROM recount((SELECT organization_id FROM accounts WHERE id = p_account)) r WHERE r.account_id = p_account;
  END IF;
END $$;

-- Add the next checkpoint of some accounts, each with its change; the caller holds the lock, and each account has one.
CREATE FUNCTION move_checkpoints(p_accounts bigint[], p_settled bigint[], p_held bigint[], p_at timestamptz, p_seq bigint)
RETURNS void LANGUAGE sql SET enable_nestloop = on SET enable_seqscan = off AS $$
  INSERT INTO checkpoints (account_id, at, step, transfer_seq, settled_micros, held_micros, floor_micros, disabled, auto_disable)
    SELECT t.account, p_at, CASE WHEN c.at = p_at THEN c.step + 1 ELSE 0 END, p_seq, c.settled_micros + t.settled, c.held_micros + t.held,
           c.floor_micros, c.disabled, c.auto_disable
      FROM unnest(p_accounts, p_settled, p_held) t(account, settled, held)
      CROSS JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = t.account ORDER BY x.at DESC, x.step DESC LIMIT 1) c
$$;

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

-- Post one transfer between accounts of the organization and move every checkpoint that it touches; the caller holds the lock.
CREATE FUNCTION post_transfer(
  p_org text, p_key text, p_phase text, p_kind text, p_debit bigint, p_credit bigint, p_amount bigint,
  p_limits bigint[] /* budgets' accounts */, p_direction smallint, p_actor text, p_reason text, p_at timestamptz
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_seq bigint := last_seq(p_org) + 1;
  v_set bigint := 0;
BEGIN
  PERFORM ensure_checkpoints(p_org, p_limits || p_debit || p_credit, p_at);
  IF cardinality(p_limits) > 0 THEN v_set := limit_set_of(p_org, account_of(p_org, 'wallet') || p_limits); END IF;
  INSERT INTO transfers (organization_id, seq, key, phase, kind, debit, credit, amount_micros, limit_set, direction, actor, reason, posted_at)
    VALUES (p_org, v_seq, p_key, p_phase, p_kind, p_debit, p_credit, p_amount, v_set, p_direction, p_actor, p_reason, p_at);
  PERFORM move_checkpoints(array_agg(a), array_agg(c), array_agg(0::bigint), p_at, v_seq)
    FROM (SELECT p_debit, -p_amount UNION ALL SELECT p_credit, p_amount UNION ALL SELECT unnest(p_limits), p_amount * p_direction) t(a, c);
  RETURN v_seq;
END $$;

-- Find or keep a set of accounts that is no agent's own, such as one with a budget that was made while a hold was in flight.
CREATE FUNCTION limit_set_of(p_org text, p_accounts bigint[]) RETURNS bigint LANGUAGE plpgsql
SET enable_nestloop = on SET enable_seqscan = off AS $$
DECLARE v_id bigint;
BEGIN
  SELECT id INTO v_id FROM limit_sets
    WHERE organization_id || '' = p_org AND hash_array(accounts) = hash_array(p_accounts) AND accounts = p_accounts LIMIT 1;
  IF v_id IS NULL THEN
    INSERT INTO limit_sets (organization_id, agent_id, path, accounts, path_version, budgets, rules, until)
      VALUES (p_org, '', '{}', p_accounts, 0, 0, 0, '-infinity') RETURNING id INTO v_id;
  END IF;
  RETURN v_id;
END $$;

-- The accounts that a hold counts against, those linked later included; the wallet first.
CREATE FUNCTION limits_of(p_org text, p_request text, p_set bigint) RETURNS bigint[] LANGUAGE sql AS $$
  SELECT (SELECT accounts FROM limit_sets WHERE id = p_set)
      || coalesce((SELECT array_agg(account_id ORDER BY account_id) FROM hold_links
                    WHERE organization_id = p_org AND request_id = p_request), '{}')
$$;

-- Lower what accounts hold for a hold that is over; the caller holds the lock and has ensured the checkpoints.
CREATE FUNCTION release_held(p_org text, p_accounts bigint[], p_amount bigint, p_at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM move_checkpoints(p_accounts, array_fill(0::bigint, ARRAY[cardinality(p_accounts)]),
                           array_fill(-p_amount, ARRAY[cardinality(p_accounts)]), p_at, last_seq(p_org));
END $$;
