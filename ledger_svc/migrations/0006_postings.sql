-- Credits in and out of a wallet by hand: purchases, refunds, adjustments. The key is the request id, for ever.
--
-- Status: 1 posted, 2 not enough available, 3 no such purchase, 4 more than is left of the purchase, 5 the key was used
-- for another posting (`field` names what differs).

CREATE FUNCTION post_by_hand(
  p_org text, p_key text, p_kind text /* purchase, refund, adjustment */, p_amount bigint /* below 0: out of the wallet */,
  p_purchase text /* refunds: the key of the purchase */, p_actor text, p_reason text,
  OUT status smallint, OUT replayed boolean, OUT field text, OUT seq bigint
) LANGUAGE plpgsql AS $$
DECLARE
  v_at timestamptz; v_wallet bigint; v_other bigint; v_bought bigint; v_refunded bigint; v_reason text; t transfers; b record;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  PERFORM expire_grants(p_org, v_at);
  replayed := false; field := ''; status := 1;
  v_wallet := account_of(p_org, 'wallet');
  v_other := account_of(p_org, CASE WHEN p_kind = 'adjustment' THEN 'adjustments' ELSE 'purchases' END);
  v_reason := CASE WHEN p_kind = 'refund' THEN p_purchase || ': ' || p_reason ELSE p_reason END;
  SELECT * INTO t FROM transfers x WHERE x.organization_id || '' = p_org AND x.key = p_key AND x.phase = 'posting';
  IF FOUND THEN
    field := CASE WHEN t.kind <> p_kind OR v_wallet NOT IN (t.debit, t.credit) OR v_other NOT IN (t.debit, t.credit) THEN 'kind'
                  WHEN (CASE WHEN t.debit = v_wallet THEN -t.amount_micros ELSE t.amount_micros END) <> p_amount THEN 'amount_micros'
                  WHEN t.reason <> v_reason THEN CASE WHEN p_kind = 'refund' AND left(t.reason, length(p_purchase) + 2) <> p_purchase || ': '
                                                      THEN 'purchase_request_id' ELSE 'reason' END
                  ELSE '' END;
    replayed := true; seq := t.seq;
    IF field <> '' THEN status := 5; END IF;
    RETURN;
  END IF;
  IF p_kind = 'refund' THEN
    SELECT x.amount_micros INTO v_bought FROM transfers x
      WHERE x.organization_id || '' = p_org AND x.key = p_purchase AND x.phase = 'posting' AND x.kind = 'purchase'
        AND x.debit = v_other AND x.credit = v_wallet;
    IF NOT FOUND THEN status := 3; RETURN; END IF;
    SELECT coalesce(sum(x.amount_micros), 0) INTO v_refunded FROM transfers x
      WHERE x.organization_id = p_org AND x.kind = 'refund' AND left(x.reason, length(p_purchase) + 2) = p_purchase || ': ';
    IF v_refunded - p_amount > v_bought THEN status := 4; RETURN; END IF;
  END IF;
  IF p_amount < 0 THEN
    SELECT * INTO b FROM balance_of(v_wallet);
    -- Money is given back for bought credits alone.
    IF b.settled - b.held - (CASE WHEN p_kind = 'refund' THEN granted_micros(p_org) ELSE 0 END) + p_amount < 0 THEN status := 2; RETURN; END IF;
    seq := post_transfer(p_org, p_key, 'posting', p_kind, v_wallet, v_other, -p_amount, '{}', 0::smallint, p_actor, v_reason, v_at);
  ELSE
    seq := post_transfer(p_org, p_key, 'posting', p_kind, v_other, v_wallet, p_amount, '{}', 0::smallint, p_actor, v_reason, v_at);
  END IF;
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['credits.' || p_kind], ARRAY[p_key],
    ARRAY['{"amount_micros":' || p_amount || ',"reason":' || to_json(v_reason) || '}']);
END $$;
CREATE INDEX transfers_refunds ON transfers (organization_id) WHERE kind = 'refund';

-- Post a batch of transfers between an organization's own accounts, in order, exactly as if they came one by one; an item
-- that is linked to the next shares its fate, and so on to the end of the chain. Only the wallet has a floor.
--
-- Status of an item: 1 posted, 2 not enough available, 5 the key was used for another posting (`field` names what
-- differs), 6 another item of its chain failed.
CREATE FUNCTION post_transfers(
  p_org text, p_key text[], p_kind text[], p_debit text[], p_credit text[], p_amount bigint[], p_reason text[], p_linked boolean[], p_actor text,
  OUT status smallint[], OUT replayed boolean[], OUT field text[], OUT seqs bigint[], OUT balance bigint
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  n int := cardinality(p_key);
  v_at timestamptz; v_seq bigint; v_wallet bigint; v_free bigint; v_least bigint; v_from int; v_ok boolean; v_posted int := 0; i int; j int;
  v_change bigint[]; v_accounts jsonb;
  x_debit bigint[]; x_credit bigint[];
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  PERFORM expire_grants(p_org, v_at);
  v_wallet := account_of(p_org, 'wallet');
  SELECT jsonb_object_agg(k, account_of(p_org, k)) INTO v_accounts FROM (SELECT DISTINCT unnest(p_debit || p_credit) AS k) d;
  PERFORM ensure_checkpoints(p_org, array_agg(value::bigint), v_at) FROM jsonb_each_text(v_accounts);
  SELECT array_agg((v_accounts ->> d)::bigint ORDER BY o), array_agg((v_accounts ->> c)::bigint ORDER BY o),
         array_agg(CASE WHEN d = 'wallet' THEN -a WHEN c = 'wallet' THEN a ELSE 0 END ORDER BY o)
    INTO x_debit, x_credit, v_change FROM unnest(p_debit, p_credit, p_amount) WITH ORDINALITY t(d, c, a, o);
  SELECT array_agg(CASE WHEN f.field <> '' THEN 5 ELSE 1 END ORDER BY o), array_agg(coalesce(f.field, '') ORDER BY o),
         array_agg(f.seq IS NOT NULL ORDER BY o), array_agg(coalesce(f.seq, 0) ORDER BY o)
    INTO status, field, replayed, seqs
    FROM unnest(p_key, p_kind, x_debit, x_credit, p_amount, p_reason) WITH ORDINALITY t(key, kind, debit, credit, amount, reason, o)
    LEFT JOIN LATERAL (SELECT x.seq, CASE WHEN x.kind <> t.kind THEN 'kind' WHEN x.debit <> t.debit THEN 'debit_account'
                                          WHEN x.credit <> t.credit THEN 'credit_account' WHEN x.amount_micros <> t.amount THEN 'amount_micros'
                                          WHEN x.reason <> t.reason THEN 'reason' ELSE '' END AS field
                         FROM transfers x WHERE x.organization_id || '' = p_org AND x.key = t.key AND x.phase = 'posting' LIMIT 1) f ON true;
  SELECT b.settled, b.settled - b.held INTO balance, v_free FROM balance_of(v_wallet) b;
  SELECT min(s) INTO v_least FROM (SELECT sum(c) OVER (ORDER BY o) AS s FROM unnest(v_change) WITH ORDINALITY t(c, o)) r;
  IF array_position(replayed, true) IS NOT NULL OR v_free + v_least < 0 THEN
    i := 1;
    WHILE i <= n LOOP
      v_from := i; v_ok := true; v_least := v_free;
      LOOP  -- one chain: all of it, or nothing
        IF replayed[i] THEN
          v_ok := v_ok AND status[i] = 1;
        ELSIF v_free + v_change[i] < 0 AND v_change[i] < 0 THEN
          status[i] := 2; v_ok := false;
        ELSE
          v_free := v_free + v_change[i];
        END IF;
        EXIT WHEN NOT p_linked[i] OR i = n;
        i := i + 1;
      END LOOP;
      IF NOT v_ok THEN
        v_free := v_least;
        FOR j IN v_from..i LOOP
          IF status[j] = 1 AND NOT replayed[j] THEN status[j] := 6; END IF;
        END LOOP;
      END IF;
      i := i + 1;
    END LOOP;
  END IF;
  v_seq := last_seq(p_org);
  INSERT INTO transfers (organization_id, seq, key, phase, kind, debit, credit, amount_micros, actor, reason, posted_at)
    SELECT p_org, v_seq + row_number() OVER (), k, 'posting', kd, d, c, a, p_actor, r, v_at
      FROM unnest(p_key, p_kind, x_debit, x_credit, p_amount, p_reason, status, replayed) t(k, kd, d, c, a, r, s, old)
     WHERE s = 1 AND NOT old;
  GET DIAGNOSTICS v_posted = ROW_COUNT;
  IF v_posted = 0 THEN RETURN; END IF;
  SELECT array_agg(CASE WHEN s = 1 AND NOT old THEN v_seq + p ELSE q END ORDER BY o) INTO seqs
    FROM (SELECT s, old, q, o, count(*) FILTER (WHERE s = 1 AND NOT old) OVER (ORDER BY o) AS p
            FROM unnest(status, replayed, seqs) WITH ORDINALITY t(s, old, q, o)) t;
  PERFORM move_checkpoints(array_agg(account), array_agg(amount), array_agg(0::bigint), v_at, v_seq + v_posted)
    FROM (SELECT account, sum(amount)::bigint AS amount
            FROM (SELECT d, -a FROM unnest(x_debit, p_amount, status, replayed) t(d, a, s, old) WHERE s = 1 AND NOT old
                  UNION ALL
                  SELECT c, a FROM unnest(x_credit, p_amount, status, replayed) t(c, a, s, old) WHERE s = 1 AND NOT old) m(account, amount)
           GROUP BY account) g;
  -- One line seals the batch: how many, which, and the digest of them as they stand in the table.
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['transfers.posted'], ARRAY[p_key[1]],
    ARRAY['{"count":' || v_posted || ',"digest":"' || encode(sha256(convert_to(string_agg(
             k || ' ' || kd || ' ' || d || ' ' || c || ' ' || a || ' ' || r, E'\n' ORDER BY o), 'UTF8')), 'hex')
          || '","first_seq":' || v_seq + 1 || ',"last_seq":' || v_seq + v_posted || '}'])
    FROM unnest(p_key, p_kind, p_debit, p_credit, p_amount, p_reason, status, replayed) WITH ORDINALITY t(k, kd, d, c, a, r, s, old, o)
   WHERE s = 1 AND NOT old;
  balance := (balance_of(v_wallet)).settled;
END $$;

-- Charge agents for what has its price already: each a hold that is granted and settled in one commit. The answers are
-- those of place_holds, `ceiling` being what was charged; a refusal is final.
CREATE FUNCTION post_charges(
  p_org text, p_agents text[], p_versions bigint[],  -- distinct; items refer to them by index, from 1
  p_request text[], p_agent_of int[], p_api_key text[], p_end_user text[], p_provider text[], p_model text[], p_amount bigint[],
  OUT status smallint[], OUT output_tokens bigint[], OUT ceiling bigint[], OUT blocker text[], OUT target text[],
  OUT short bigint[], OUT replayed boolean[], OUT field text[], OUT balance bigint
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  n int := cardinality(p_request);
  v_at timestamptz; v_sets bigint[]; v_plain boolean; v_seq bigint; v_revenue bigint; v_posted int;
  v_none bigint[] := array_fill(0::bigint, ARRAY[cardinality(p_request)]);
  v_zero int[] := array_fill(0, ARRAY[cardinality(p_request)]);
  v_off boolean[] := array_fill(false, ARRAY[cardinality(p_request)]);
  v_empty text[] := array_fill(''::text, ARRAY[cardinality(p_request)]);
  a_id bigint[]; a_step smallint[]; a_settled bigint[]; a_held bigint[]; a_floor bigint[]; a_disabled boolean[]; a_auto boolean[]; a_spent bigint[];
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  PERFORM expire_grants(p_org, v_at);
  v_sets := sets_of(p_org, p_agents, p_versions, v_at);
  v_revenue := account_of(p_org, 'revenue');
  v_plain := array_position(v_sets, NULL) IS NULL
    AND NOT EXISTS (SELECT 1 FROM unnest(p_request) r(id)
                     CROSS JOIN LATERAL (SELECT 1 FROM holds x WHERE x.organization_id = p_org AND x.request_id = r.id LIMIT 1) h);
  IF v_plain THEN
    SELECT array_agg(q.account), array_agg(CASE WHEN c.at = v_at THEN c.step + 1 ELSE 0 END), array_agg(c.settled_micros - q.asked),
           array_agg(c.held_micros), array_agg(c.floor_micros), array_agg(c.disabled), array_agg(c.auto_disable), array_agg(q.asked),
           bool_and(q.account = v_revenue OR coalesce(c.settled_micros - c.held_micros - q.asked >= c.floor_micros AND NOT c.disabled, false))
      INTO a_id, a_step, a_settled, a_held, a_floor, a_disabled, a_auto, a_spent, v_plain
      FROM (
        SELECT l.account, sum(g.asked)::bigint AS asked
          FROM (SELECT k, sum(f) AS asked FROM unnest(p_agent_of, p_amount) i(k, f) GROUP BY k) g
          CROSS JOIN LATERAL (SELECT unnest(s.accounts) AS account FROM limit_sets s WHERE s.id = v_sets[g.k]) l
         GROUP BY l.account
        UNION ALL
        SELECT v_revenue, -sum(f)::bigint FROM unnest(p_amount) f) q
      LEFT JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = q.account ORDER BY x.at DESC, x.step DESC LIMIT 1) c ON true;
    v_plain := v_plain AND array_position(a_settled, NULL) IS NULL;
  END IF;
  IF NOT v_plain THEN
    SELECT * INTO status, output_tokens, ceiling, blocker, target, short, replayed, field
      FROM place_holds(p_org, ARRAY[''], p_agents, p_versions, p_request, array_fill(1, ARRAY[n]), p_agent_of, p_api_key, p_end_user,
                       (SELECT array_agg(p || '/' || m ORDER BY o) FROM unnest(p_provider, p_model) WITH ORDINALITY t(p, m, o)),
                       v_empty, p_amount, v_none, v_none, array_fill(1, ARRAY[n]), v_none, v_none, v_none, v_none, p_amount, array_fill(true, ARRAY[n]));
    FOR i IN 1..n LOOP  -- by the names that this request has for what differs; an amount stands where holds have their input
      field[i] := CASE field[i]
        WHEN 'input_tokens_max' THEN 'amount_micros'
        WHEN 'routes' THEN (SELECT CASE WHEN starts_with(h.routes, p_provider[i] || '/') THEN 'model' ELSE 'provider' END
                              FROM holds h WHERE h.organization_id = p_org AND h.request_id = p_request[i])
        ELSE field[i] END;
    END LOOP;
    PERFORM settle_holds(p_org, array_agg(p_request[o] ORDER BY o), array_agg(p_amount[o] ORDER BY o), array_agg(p_provider[o] ORDER BY o),
                         array_agg(p_model[o] ORDER BY o), array_agg(''::text), array_agg(0::bigint), array_agg(0::bigint), array_agg(0::bigint),
                         array_agg(0::bigint), array_agg(0::bigint), array_agg(false), array_agg('ok'::text), array_agg(0), array_agg(0),
                         array_agg(0), array_agg(0), array_agg(false), array_agg(''::text), array_agg(0), array_agg(''::text))
      FROM generate_series(1, n) o WHERE status[o] = 1 AND NOT replayed[o] HAVING count(*) > 0;
    balance := (balance_of(account_of(p_org, 'wallet'))).settled;
    RETURN;
  END IF;

  status := array_fill(1::smallint, ARRAY[n]);
  output_tokens := v_none; ceiling := p_amount; blocker := v_empty; target := v_empty; short := v_none; replayed := v_off; field := v_empty;
  v_seq := last_seq(p_org);
  INSERT INTO holds (organization_id, request_id, agent_id, api_key_id, end_user, holder_id, routes, price_ids, input_tokens_max, output_wanted,
                     output_min, choices, cost_max_micros, status, output_tokens, ceiling_micros, limit_set, blocker, target_id, short_micros, held_at)
    SELECT p_org, r, p_agents[a], k, e, '', p || '/' || m, '{}', f, 0, 0, 1, 0, 1, 0, f, v_sets[a], '', '', 0, v_at
      FROM unnest(p_request, p_agent_of, p_api_key, p_end_user, p_provider, p_model, p_amount) t(r, a, k, e, p, m, f);
  INSERT INTO transfers (organization_id, seq, key, phase, kind, debit, credit, amount_micros, limit_set, direction, actor, posted_at)
    SELECT p_org, v_seq + row_number() OVER (), r, 'charge', 'charge', b.accounts[1], v_revenue, f,
           CASE WHEN cardinality(b.accounts) > 1 THEN v_sets[a] ELSE 0 END, CASE WHEN cardinality(b.accounts) > 1 THEN -1 ELSE 0 END,
           'service:gateway', v_at
      FROM unnest(p_request, p_agent_of, p_amount) t(r, a, f)
      CROSS JOIN LATERAL (SELECT accounts FROM limit_sets x WHERE x.id = v_sets[t.a] LIMIT 1) b WHERE f > 0;
  GET DIAGNOSTICS v_posted = ROW_COUNT;
  PERFORM write_usage(p_org, p_request, array_agg(p_agents[a] ORDER BY o), p_api_key, p_end_user, array_agg(v_sets[a] ORDER BY o), p_amount,
                      array_agg(v_at), p_amount, v_none, p_provider, p_model, v_empty, v_none, v_none, v_none, v_none, v_none, v_off,
                      array_agg('ok'::text), v_zero, v_zero, v_zero, v_zero, v_off, v_empty, v_zero, v_empty, v_at)
    FROM unnest(p_agent_of) WITH ORDINALITY t(a, o);
  INSERT INTO checkpoints (account_id, at, step, transfer_seq, settled_micros, held_micros, floor_micros, disabled, auto_disable)
    SELECT id, v_at, st, v_seq + v_posted, s, h, f, d, a
      FROM unnest(a_id, a_step, a_settled, a_held, a_floor, a_disabled, a_auto) t(id, st, s, h, f, d, a);
  PERFORM cross_thresholds(p_org, a_id, a_settled, a_spent, a_floor, a_auto, a_disabled, v_at);
  balance := (balance_of(account_of(p_org, 'wallet'))).settled;
END $$;
