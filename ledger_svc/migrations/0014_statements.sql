-- What balances were, whether the books foot, and less of what is derived.

-- The last transfer at or before a moment, found by halving: rows are in the order of their time.
CREATE FUNCTION seq_at(p_org text, p_at timestamptz) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE v_low bigint := 0; v_high bigint := last_seq(p_org); v_middle bigint;
BEGIN
  WHILE v_low < v_high LOOP
    v_middle := (v_low + v_high + 1) / 2;
    IF (SELECT posted_at FROM transfers WHERE organization_id = p_org AND seq = v_middle) <= p_at THEN v_low := v_middle; ELSE v_high := v_middle - 1; END IF;
  END LOOP;
  RETURN v_low;
END $$;

-- What an account has settled once the transfers up to `p_seq` are in: the checkpoint before, and the few rows since. Old
-- checkpoints are thinned out to the last of each account in every 1,024 transfers, and a commit makes fewer than 4,096: a
-- row further back is in a checkpoint that was left. Where none is left, everything is counted. `p_at` is the moment that is
-- meant, where that is later than the transfer.
CREATE FUNCTION balance_at(p_org text, p_account bigint, p_seq bigint, p_at timestamptz) RETURNS bigint LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE v_seq bigint := least(p_seq, last_seq(p_org)); v_time timestamptz; v_from bigint := 0; v_balance bigint; v_moved bigint; c checkpoints; a accounts;
BEGIN
  SELECT * INTO a FROM accounts WHERE id = p_account AND organization_id = p_org;
  v_balance := a.opening_micros;
  SELECT posted_at INTO v_time FROM transfers WHERE organization_id = p_org AND seq = v_seq;
  v_time := coalesce(p_at, v_time, '-infinity');
  -- What a budget opened with was spent before it was made, when it had no balance.
  IF a.kind = 'budget' AND v_time < a.opened_at THEN RETURN 0; END IF;
  SELECT * INTO c FROM checkpoints
    WHERE account_id = p_account AND at <= v_time AND transfer_seq <= v_seq ORDER BY at DESC, step DESC LIMIT 1;
  IF c.account_id IS NOT NULL THEN
    v_balance := c.settled_micros;
    -- Every commit touches the wallet, so that a wider gap in its checkpoints was not left by thinning.
    v_from := CASE WHEN a.kind = 'wallet' THEN c.transfer_seq ELSE greatest(c.transfer_seq, v_seq / 1024 * 1024 - 4096) END;
  END IF;
  SELECT coalesce(sum(g.moved + CASE WHEN p_account = ANY (s.accounts[2:]) THEN g.counted ELSE 0 END), 0) INTO v_moved
    FROM (SELECT limit_set, sum(CASE p_account WHEN debit THEN -amount_micros WHEN credit THEN amount_micros ELSE 0 END) AS moved,
                 sum(amount_micros * direction) AS counted
            FROM transfers WHERE organization_id = p_org AND seq > v_from AND seq <= v_seq GROUP BY limit_set) g
    LEFT JOIN LATERAL (SELECT accounts FROM limit_sets x WHERE x.id = g.limit_set LIMIT 1) s ON true;
  RETURN v_balance + v_moved;
END $$;

-- The lines of an account among the transfers of a range, oldest first.
CREATE FUNCTION lines_of(p_org text, p_account bigint, p_after bigint, p_until bigint)
RETURNS TABLE (seq bigint, kind text, key text, phase text, amount_micros bigint, actor text, reason text, posted_at timestamptz)
LANGUAGE sql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
  SELECT t.seq, t.kind, t.key, t.phase, CASE p_account WHEN t.debit THEN -t.amount_micros WHEN t.credit THEN t.amount_micros ELSE t.amount_micros * t.direction END,
         t.actor, t.reason, t.posted_at
    FROM transfers t LEFT JOIN LATERAL (SELECT accounts FROM limit_sets x WHERE x.id = t.limit_set LIMIT 1) s ON true
   WHERE t.organization_id = p_org AND t.seq > p_after AND t.seq <= p_until AND (p_account IN (t.debit, t.credit) OR p_account = ANY (s.accounts[2:]))
   ORDER BY t.seq
$$;

-- Recompute everything that is kept for speed, and check what must hold of facts. One row for each thing that is wrong, at
-- most 1,000; none when the books are right. Reads one snapshot and takes no lock.
CREATE FUNCTION verify_books(p_org text) RETURNS TABLE (what text, subject text, expected text, found text) LANGUAGE sql STABLE
SET work_mem = '64MB' AS $$
  WITH counted AS MATERIALIZED (
    SELECT r.account_id, r.settled, r.held, b.settled AS kept, b.held AS kept_held
      FROM recount(p_org) r CROSS JOIN LATERAL balance_of(r.account_id) b
  ), told AS MATERIALIZED (
    SELECT line::json ->> 'subject' AS subject FROM audit WHERE organization_id = p_org AND line LIKE '{"action":"credits.%'
  ), ranges AS MATERIALIZED (
    SELECT (line::json -> 'detail' ->> 'first_seq')::bigint AS first_seq, (line::json -> 'detail' ->> 'last_seq')::bigint AS last_seq
      FROM audit WHERE organization_id = p_org AND line LIKE '{"action":"transfers.posted"%'
  ), wrong AS (
    SELECT 'settled' AS what, account_id::text AS subject, settled::text AS expected, kept::text AS found FROM counted WHERE kept <> settled
    UNION ALL
    SELECT 'held', account_id::text, held::text, kept_held::text FROM counted WHERE kept_held <> held
    UNION ALL
    SELECT 'floor', 'wallet', 'settled >= held >= 0', b.settled || ' >= ' || b.held || ' >= 0'
      FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b
     WHERE a.organization_id = p_org AND a.kind = 'wallet' AND NOT (b.settled >= b.held AND b.held >= 0)
    UNION ALL
    SELECT 'suspense', 'suspense', u.amount::text, b.settled::text
      FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b
      CROSS JOIN (SELECT coalesce(sum(o.charged_micros), 0) AS amount FROM outcomes o
                   WHERE o.organization_id = p_org AND o.phase = 'uncertain'
                     AND NOT EXISTS (SELECT 1 FROM ends e WHERE e.organization_id = p_org AND e.request_id = o.request_id AND e.phase <> 'uncertain')) u
     WHERE a.organization_id = p_org AND a.kind = 'suspense' AND b.settled <> u.amount
    UNION ALL
    SELECT 'gap', 'transfers', max(t.seq)::text, count(*)::text FROM transfers t WHERE t.organization_id = p_org HAVING max(t.seq) <> count(*)
    UNION ALL
    SELECT 'gap', 'usage', max(u.seq)::text, count(*)::text FROM usage u WHERE u.organization_id = p_org HAVING max(u.seq) <> count(*)
    UNION ALL
    SELECT 'gap', 'audit', max(a.seq)::text, count(*)::text FROM audit a WHERE a.organization_id = p_org HAVING max(a.seq) <> count(*)
    UNION ALL
    SELECT 'charge', u.request_id, u.charged_micros || '+' || u.breach_micros, coalesce(t.charged, 0) || '+' || coalesce(t.breach, 0)
      FROM usage u
      LEFT JOIN (SELECT key, sum(amount_micros) FILTER (WHERE phase IN ('charge', 'overage')) AS charged,
                        sum(amount_micros) FILTER (WHERE phase = 'breach') AS breach
                   FROM transfers WHERE organization_id = p_org AND phase IN ('charge', 'overage', 'breach') GROUP BY key) t ON t.key = u.request_id
     WHERE u.organization_id = p_org AND (u.charged_micros, u.breach_micros) <> (coalesce(t.charged, 0), coalesce(t.breach, 0))
    UNION ALL
    SELECT 'unaudited', t.seq::text, 'a line in the audit chain', 'none'
      FROM transfers t
     WHERE t.organization_id = p_org AND t.phase = 'posting' AND t.kind NOT IN ('grant', 'breakage', 'grant_void')
       AND NOT EXISTS (SELECT 1 FROM told WHERE told.subject = t.key)
       AND NOT EXISTS (SELECT 1 FROM ranges WHERE t.seq BETWEEN first_seq AND last_seq)
    UNION ALL
    SELECT 'charged twice', t.key, '1', count(*)::text FROM transfers t
     WHERE t.organization_id = p_org AND t.phase = 'charge' GROUP BY t.key HAVING count(*) > 1
    UNION ALL
    SELECT 'open', h.request_id, 'open', 'not listed'
      FROM holds h
     WHERE h.organization_id = p_org AND h.status = 1
       AND NOT EXISTS (SELECT 1 FROM usage u WHERE u.organization_id = p_org AND u.request_id = h.request_id)
       AND NOT EXISTS (SELECT 1 FROM outcomes e WHERE e.organization_id = p_org AND e.request_id = h.request_id)
       AND NOT EXISTS (SELECT 1 FROM open_holds o WHERE o.organization_id = p_org AND o.request_id = h.request_id)
    UNION ALL
    SELECT 'open', o.request_id, e.phase, 'listed as open'
      FROM open_holds o JOIN ends e USING (organization_id, request_id) WHERE o.organization_id = p_org
    UNION ALL
    SELECT 'chain', a.seq::text, encode(sha256(a.before || convert_to(a.line, 'UTF8')), 'hex'), encode(a.hash, 'hex')
      FROM (SELECT x.seq, x.line, x.hash, lag(x.hash, 1, sha256(convert_to(p_org, 'UTF8'))) OVER (ORDER BY x.seq) AS before
              FROM audit x WHERE x.organization_id = p_org) a
     WHERE sha256(a.before || convert_to(a.line, 'UTF8')) <> a.hash)
  SELECT * FROM wrong LIMIT 1000
$$;

-- Until when the checkpoints of an organization were thinned out.
CREATE TABLE thinnings (
  organization_id text PRIMARY KEY,
  until           timestamptz NOT NULL
);
GRANT SELECT ON thinnings TO mandate_ledger;

-- Delete checkpoints for which a later one of the same account and the same 1,024 transfers stands in, over the next 10,000
-- transfers before a moment. The last of every account stays. Runs as the owner: the service itself may delete none.
-- Returns whether there is more to do.
CREATE FUNCTION thin_checkpoints(p_org text, p_before timestamptz) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
DECLARE v_from timestamptz; v_until timestamptz;
BEGIN
  INSERT INTO thinnings (organization_id, until) VALUES (p_org, '-infinity') ON CONFLICT DO NOTHING;
  SELECT until INTO v_from FROM thinnings WHERE organization_id = p_org FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN RETURN false; END IF;
  SELECT posted_at INTO v_until FROM transfers WHERE organization_id = p_org AND seq = seq_at(p_org, v_from) + 10000;
  v_until := least(coalesce(v_until, p_before), p_before);
  DELETE FROM checkpoints WHERE ctid = ANY (ARRAY(
    SELECT k.id FROM accounts a
      CROSS JOIN LATERAL (
        SELECT c.ctid AS id, c.transfer_seq / 1024 AS span, lead(c.transfer_seq / 1024) OVER (ORDER BY c.at, c.step) AS next
          FROM checkpoints c WHERE c.account_id = a.id AND c.at > v_from AND c.at <= v_until) k
     WHERE a.organization_id = p_org AND k.next = k.span));
  UPDATE thinnings SET until = v_until WHERE organization_id = p_org;
  RETURN v_until < p_before;
END $$;
REVOKE ALL ON FUNCTION thin_checkpoints(text, timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION thin_checkpoints(text, timestamptz) TO mandate_ledger;

-- Organizations, to be gone through one after the other.
CREATE FUNCTION organizations_after(p_after text, p_count int) RETURNS SETOF text LANGUAGE sql STABLE AS $$
  SELECT organization_id FROM accounts WHERE kind = 'wallet' AND organization_id > p_after ORDER BY organization_id LIMIT p_count
$$;

-- Make anew what is derived from an organization's facts and missing. Returns how many open holds were not listed.
CREATE FUNCTION rebuild_derived(p_org text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_count int;
BEGIN
  v_count := rebuild_open_holds(p_org);
  PERFORM restore_checkpoints(p_org, ledger_time(p_org));
  RETURN v_count;
END $$;
