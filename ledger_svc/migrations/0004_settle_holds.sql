-- Settle a batch of one organization's holds with what they cost; one call is one commit.
--
-- Status of an item: 1 settled, 2 no such hold was granted, 3 it was voided, 4 it was resolved by hand, 5 it was settled
-- with other figures (`field` names what differs).
--
-- Where every hold is open and every cost within its ceiling, which is nearly always, the order changes nothing and the
-- batch is posted by sums, an account at a time. Any other batch is walked through.

CREATE FUNCTION settle_holds(
  p_org text, p_request text[], p_cost bigint[], p_provider text[], p_model text[], p_price text[],
  p_input bigint[], p_cached bigint[], p_cache_write bigint[], p_output bigint[], p_reasoning bigint[],
  p_estimated boolean[], p_outcome text[], p_http_status int[], p_latency int[], p_overhead int[], p_first_token int[], p_streamed boolean[],
  p_source text[], p_attempts int[], p_dialect text[],
  OUT status smallint[], OUT charged bigint[], OUT breach bigint[], OUT replayed boolean[], OUT field text[], OUT balance bigint
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  n int := cardinality(p_request);
  v_at timestamptz; v_seq bigint; v_posted int; v_plain boolean;
  v_wallet bigint; v_revenue bigint;
  h_agent text[]; h_key text[]; h_user text[]; h_ceiling bigint[]; h_set bigint[]; h_held_at timestamptz[]; h_open tid[];  -- for each item
  a_id bigint[]; a_step smallint[]; a_settled bigint[]; a_held bigint[]; a_floor bigint[]; a_disabled boolean[]; a_auto boolean[];  -- for each account
  a_spent bigint[];
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  SELECT array_agg(h.agent_id ORDER BY o), array_agg(h.api_key_id ORDER BY o), array_agg(h.end_user ORDER BY o),
         array_agg(h.ceiling_micros ORDER BY o), array_agg(h.limit_set ORDER BY o), array_agg(h.held_at ORDER BY o),
         array_agg(x.ctid), bool_and(coalesce(h.status = 1 AND t.cost <= h.ceiling_micros AND x.ctid IS NOT NULL, false))
    INTO h_agent, h_key, h_user, h_ceiling, h_set, h_held_at, h_open, v_plain
    FROM unnest(p_request, p_cost) WITH ORDINALITY t(request, cost, o)
    LEFT JOIN LATERAL (SELECT * FROM holds x WHERE x.organization_id = p_org AND x.request_id = t.request LIMIT 1) h ON true
    LEFT JOIN LATERAL (SELECT x.ctid FROM open_holds x WHERE x.organization_id = p_org AND x.request_id = t.request LIMIT 1) x ON true;
  -- The list of open holds is derived: what it says is not taken for what became of a hold.
  IF v_plain AND EXISTS (SELECT 1 FROM outcomes WHERE organization_id = p_org LIMIT 1) THEN
    v_plain := NOT EXISTS (SELECT 1 FROM unnest(p_request) r(id)
                            CROSS JOIN LATERAL (SELECT 1 FROM outcomes x WHERE x.organization_id = p_org AND x.request_id = r.id LIMIT 1) l);
  END IF;
  IF v_plain AND EXISTS (SELECT 1 FROM hold_links WHERE organization_id = p_org LIMIT 1) THEN
    v_plain := NOT EXISTS (SELECT 1 FROM unnest(p_request) r(id)
                            CROSS JOIN LATERAL (SELECT 1 FROM hold_links x WHERE x.organization_id = p_org AND x.request_id = r.id LIMIT 1) l);
  END IF;
  IF v_plain THEN
    v_wallet := account_of(p_org, 'wallet');
    v_revenue := account_of(p_org, 'revenue');
    SELECT array_agg(q.account), array_agg(CASE WHEN c.at = v_at THEN c.step + 1 ELSE 0 END), array_agg(c.settled_micros - q.cost),
           array_agg(c.held_micros - q.ceiling), array_agg(c.floor_micros), array_agg(c.disabled), array_agg(c.auto_disable), array_agg(q.cost)
      INTO a_id, a_step, a_settled, a_held, a_floor, a_disabled, a_auto, a_spent
      FROM (
        SELECT l.account, sum(g.cost)::bigint AS cost, sum(g.ceiling)::bigint AS ceiling
          FROM (SELECT s, sum(co) AS cost, sum(ce) AS ceiling FROM unnest(h_set, p_cost, h_ceiling) i(s, co, ce) GROUP BY s) g
          CROSS JOIN LATERAL (SELECT unnest(x.accounts) AS account FROM limit_sets x WHERE x.id = g.s) l
         GROUP BY l.account
        UNION ALL
        SELECT v_revenue, -sum(co)::bigint, 0 FROM unnest(p_cost) co) q
      LEFT JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = q.account ORDER BY x.at DESC, x.step DESC LIMIT 1) c ON true;
    v_plain := array_position(a_settled, NULL) IS NULL;
  END IF;
  IF NOT v_plain THEN
    SELECT * INTO status, charged, breach, replayed, field, balance
      FROM walk_settlements(p_org, v_at, p_request, p_cost, p_provider, p_model, p_price, p_input, p_cached, p_cache_write, p_output, p_reasoning,
                            p_estimated, p_outcome, p_http_status, p_latency, p_overhead, p_first_token, p_streamed,
                            p_source, p_attempts, p_dialect);
    RETURN;
  END IF;

  status := array_fill(1::smallint, ARRAY[n]);
  charged := p_cost;
  breach := array_fill(0::bigint, ARRAY[n]);
  replayed := array_fill(false, ARRAY[n]);
  field := array_fill(''::text, ARRAY[n]);
  v_seq := last_seq(p_org);
  INSERT INTO transfers (organization_id, seq, key, phase, kind, debit, credit, amount_micros, limit_set, direction, actor, posted_at)
    SELECT p_org, v_seq + row_number() OVER (), r, 'charge', 'charge', v_wallet, v_revenue, c,
           CASE WHEN b THEN s ELSE 0 END, CASE WHEN b THEN -1 ELSE 0 END, 'service:gateway', v_at
      FROM (SELECT t.r, t.c, t.s, cardinality(x.accounts) > 1 AS b
              FROM unnest(p_request, p_cost, h_set) t(r, c, s)
              CROSS JOIN LATERAL (SELECT accounts FROM limit_sets y WHERE y.id = t.s LIMIT 1) x
             WHERE t.c > 0) t;
  GET DIAGNOSTICS v_posted = ROW_COUNT;
  PERFORM write_usage(p_org, p_request, h_agent, h_key, h_user, h_set, h_ceiling, h_held_at, charged, breach, p_provider, p_model, p_price, p_input,
                      p_cached, p_cache_write, p_output, p_reasoning, p_estimated, p_outcome, p_http_status, p_latency, p_overhead,
                      p_first_token, p_streamed, p_source, p_attempts, p_dialect, v_at);
  DELETE FROM open_holds WHERE ctid = ANY (h_open);  -- they stay where they are: every change to them is under the lock
  INSERT INTO checkpoints (account_id, at, step, transfer_seq, settled_micros, held_micros, floor_micros, disabled, auto_disable)
    SELECT id, v_at, st, v_seq + v_posted, s, h, f, d, a
      FROM unnest(a_id, a_step, a_settled, a_held, a_floor, a_disabled, a_auto) t(id, st, s, h, f, d, a);
  PERFORM cross_thresholds(p_org, a_id, a_settled, a_spent, a_floor, a_auto, a_disabled, v_at);
  balance := a_settled[array_position(a_id, v_wallet)];
END $$;

-- Write the usage rows and the audit lines of settled holds; every array has one value for each.
CREATE FUNCTION write_usage(
  p_org text, p_request text[], p_agent text[], p_key text[], p_user text[], p_set bigint[], p_ceiling bigint[], p_held_at timestamptz[],
  p_charged bigint[], p_breach bigint[], p_provider text[], p_model text[], p_price text[], p_input bigint[], p_cached bigint[],
  p_cache_write bigint[], p_output bigint[], p_reasoning bigint[], p_estimated boolean[], p_outcome text[], p_http_status int[],
  p_latency int[], p_overhead int[], p_first_token int[], p_streamed boolean[], p_source text[], p_attempts int[], p_dialect text[],
  p_at timestamptz
) RETURNS void LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_nestloop = on SET enable_seqscan = off AS $$
DECLARE v_seq bigint; v_detail text[];
BEGIN
  v_seq := last_usage(p_org);
  INSERT INTO usage (organization_id, seq, request_id, path, agent_id, api_key_id, end_user, provider, model, price_id, input_tokens,
                     cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, charged_micros, ceiling_micros, breach_micros,
                     estimated, outcome, http_status, latency_ms, overhead_ms, first_token_ms, streamed, usage_source, attempts,
                     dialect, held_at, used_at)
    SELECT p_org, v_seq + o, r, s.path, a, k, e, pr, m, pi, i, ci, cw, ot, re, ch, ce, br, es, oc, hs, la, ov, ft, sr, us, at, di, ha, p_at
      FROM unnest(p_request, p_agent, p_key, p_user, p_set, p_ceiling, p_held_at, p_charged, p_breach, p_provider, p_model, p_price, p_input,
                  p_cached, p_cache_write, p_output, p_reasoning, p_estimated, p_outcome, p_http_status, p_latency, p_overhead, p_first_token,
                  p_streamed, p_source, p_attempts, p_dialect)
           WITH ORDINALITY t(r, a, k, e, st, ce, ha, ch, br, pr, m, pi, i, ci, cw, ot, re, es, oc, hs, la, ov, ft, sr, us, at, di, o)
      CROSS JOIN LATERAL (SELECT path FROM limit_sets x WHERE x.id = t.st LIMIT 1) s;
  SELECT array_agg('{"breach_micros":' || br || ',"charged_micros":' || ch || ',"model":' || to_json(m) || ',"outcome":' || to_json(oc)
                   || ',"price_id":' || to_json(pi) || ',"provider":' || to_json(pr) || '}' ORDER BY o)
    INTO v_detail
    FROM unnest(p_breach, p_charged, p_model, p_outcome, p_price, p_provider) WITH ORDINALITY t(br, ch, m, oc, pi, pr, o);
  PERFORM append_audit(p_org, p_at, p_agent, array_fill('charge.settled'::text, ARRAY[cardinality(p_request)]), p_request, v_detail);
END $$;

-- Tell of each budget that spending took across 50, 80 or 100 % of its limit, and stop those at their end that are to stop.
CREATE FUNCTION cross_thresholds(
  p_org text, p_account bigint[], p_settled bigint[] /* after */, p_spent bigint[], p_floor bigint[], p_auto boolean[], p_disabled boolean[], p_at timestamptz
) RETURNS void LANGUAGE plpgsql SET enable_nestloop = on SET enable_seqscan = off AS $$
DECLARE v_account bigint[]; v_percent int[]; v_budget text[]; v_subject text[]; v_detail text[];
BEGIN
  SELECT array_agg(id ORDER BY id, p), array_agg(p ORDER BY id, p) INTO v_account, v_percent
    FROM unnest(p_account, p_settled, p_spent, p_floor) t(id, s, d, f), unnest(ARRAY[50, 80, 100]) p
   WHERE f < 0 AND d > 0 AND -s::numeric * 100 >= -f::numeric * p AND -(s::numeric + d) * 100 < -f::numeric * p;
  IF v_account IS NOT NULL THEN
    SELECT array_agg(a.budget_id ORDER BY o),
           array_agg('{"limit_micros":' || -r.floor || ',"percent":' || p || ',"target_id":' || to_json(g.target_id) || ',"window_start":"'
                     || to_char(a.window_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || '"}' ORDER BY o)
      INTO v_subject, v_detail
      FROM unnest(v_account, v_percent) WITH ORDINALITY t(id, p, o)
      CROSS JOIN LATERAL (SELECT * FROM accounts x WHERE x.id = t.id LIMIT 1) a
      CROSS JOIN LATERAL (SELECT target_id FROM budgets x WHERE x.id = a.budget_id LIMIT 1) g
      CROSS JOIN LATERAL rule_of(a.budget_id) r
     WHERE a.kind = 'budget';
    IF v_subject IS NOT NULL THEN
      PERFORM append_audit(p_org, p_at, array_fill('service:ledger'::text, ARRAY[cardinality(v_subject)]),
                           array_fill('budget.threshold'::text, ARRAY[cardinality(v_subject)]), v_subject, v_detail);
      PERFORM emit_events(p_org, p_at, array_fill('budget.threshold'::text, ARRAY[cardinality(v_subject)]), v_subject, v_detail);
    END IF;
  END IF;
  SELECT array_agg(a.budget_id) INTO v_budget
    FROM unnest(p_account, p_settled, p_floor, p_auto, p_disabled) t(id, s, f, auto, off)
    CROSS JOIN LATERAL (SELECT budget_id FROM accounts x WHERE x.id = t.id LIMIT 1) a
   WHERE auto AND NOT off AND s <= f;
  IF v_budget IS NOT NULL THEN PERFORM disable_budgets(p_org, v_budget, p_at); END IF;
END $$;

-- Walk through a batch of settlements, item by item; settle_holds has the lock.
CREATE FUNCTION walk_settlements(
  p_org text, p_at timestamptz, p_request text[], p_cost bigint[], p_provider text[], p_model text[], p_price text[],
  p_input bigint[], p_cached bigint[], p_cache_write bigint[], p_output bigint[], p_reasoning bigint[],
  p_estimated boolean[], p_outcome text[], p_http_status int[], p_latency int[], p_overhead int[], p_first_token int[], p_streamed boolean[],
  p_source text[], p_attempts int[], p_dialect text[],
  OUT status smallint[], OUT charged bigint[], OUT breach bigint[], OUT replayed boolean[], OUT field text[], OUT balance bigint
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_nestloop = off AS $$
DECLARE
  n int := cardinality(p_request);
  v_seq bigint; i int; j int; v_new int[];
  h_ceiling bigint[]; h_late boolean[]; h_set bigint[]; h_limits text[]; h_own bigint[];  -- one for each item
  h_lims text[];                                                                        -- the same as indexes
  a_id bigint[]; a_settled bigint[]; a_held bigint[]; a_floor bigint[]; a_was bigint[]; a_least bigint[]; a_was_held bigint[];
  v_lim int[]; v_post bigint; v_fits bigint; v_before bigint;
  t_item int[] := '{}'; t_kind text[] := '{}'; t_debit bigint[] := '{}'; t_credit bigint[] := '{}';
  t_amount bigint[] := '{}'; t_direction smallint[] := '{}';
  k_wallet constant int := 1; k_revenue constant int := 2; k_suspense constant int := 3; k_breach constant int := 4;
BEGIN
  SELECT array_agg(CASE WHEN h.request_id IS NULL OR h.status <> 1 THEN 2 WHEN f.voided THEN 3 WHEN f.resolved THEN 4 ELSE 1 END::smallint ORDER BY o),
         array_agg(coalesce(u.charged_micros, 0) ORDER BY o), array_agg(coalesce(u.breach_micros, 0) ORDER BY o),
         array_agg(u.request_id IS NOT NULL ORDER BY o), array_agg(coalesce(h.ceiling_micros, 0) ORDER BY o),
         array_agg(coalesce(f.uncertain, false) ORDER BY o), array_agg(coalesce(h.limit_set, 0) ORDER BY o),
         array_agg(array_to_string(limits_of(p_org, h.request_id, h.limit_set), ',') ORDER BY o),
         array_agg(CASE WHEN u.request_id IS NULL THEN ''
                        WHEN u.provider <> t.provider OR u.model <> t.model THEN 'route'
                        WHEN u.input_tokens <> t.input THEN 'usage.input_tokens'
                        WHEN u.cached_input_tokens <> t.cached THEN 'usage.cached_input_tokens'
                        WHEN u.cache_write_tokens <> t.cache_write THEN 'usage.cache_write_tokens'
                        WHEN u.output_tokens <> t.output THEN 'usage.output_tokens'
                        WHEN u.reasoning_tokens <> t.reasoning THEN 'usage.reasoning_tokens'
                        WHEN u.outcome <> t.outcome THEN 'outcome'
                        WHEN u.estimated <> t.estimated THEN 'estimated'
                        WHEN u.http_status <> t.http_status THEN 'http_status'
                        WHEN u.latency_ms <> t.latency THEN 'latency_ms'
                        WHEN u.overhead_ms <> t.overhead THEN 'overhead_ms'
                        WHEN u.first_token_ms <> t.first_token THEN 'first_token_ms'
                        WHEN u.streamed <> t.streamed THEN 'streamed'
                        WHEN u.usage_source <> t.source THEN 'usage_source'
                        WHEN u.attempts <> t.attempts THEN 'attempts'
                        WHEN u.dialect <> t.dialect THEN 'dialect' ELSE '' END ORDER BY o)
    INTO status, charged, breach, replayed, h_ceiling, h_late, h_set, h_limits, field
    FROM unnest(p_request, p_provider, p_model, p_input, p_cached, p_cache_write, p_output, p_reasoning, p_outcome, p_estimated,
                p_http_status, p_latency, p_overhead, p_first_token, p_streamed, p_source, p_attempts, p_dialect)
         WITH ORDINALITY t(request, provider, model, input, cached, cache_write, output, reasoning, outcome, estimated, http_status,
                           latency, overhead, first_token, streamed, source, attempts, dialect, o)
    LEFT JOIN LATERAL (SELECT * FROM holds x WHERE x.organization_id = p_org AND x.request_id = t.request LIMIT 1) h ON true
    LEFT JOIN LATERAL (
      SELECT bool_or(phase = 'voided') AS voided, bool_or(phase = 'resolved') AS resolved, bool_or(phase = 'uncertain') AS uncertain
        FROM outcomes x WHERE x.organization_id = p_org AND x.request_id = t.request) f ON true
    LEFT JOIN LATERAL (SELECT * FROM usage x WHERE x.organization_id || '' = p_org AND x.request_id = t.request LIMIT 1) u ON true;

  FOR i IN 1..n LOOP
    IF replayed[i] AND field[i] <> '' THEN status[i] := 5;
    ELSIF status[i] = 1 AND NOT replayed[i] THEN v_new := v_new || i;
    END IF;
  END LOOP;
  IF v_new IS NULL THEN
    balance := (balance_of(account_of(p_org, 'wallet'))).settled;
    RETURN;
  END IF;

  SELECT array_agg(id ORDER BY place, id) INTO a_id FROM (
    SELECT account_of(p_org, 'wallet') AS id, 1 AS place
    UNION SELECT account_of(p_org, 'revenue'), 2
    UNION SELECT account_of(p_org, 'suspense'), 3
    UNION SELECT account_of(p_org, 'breach'), 4
    UNION SELECT l::bigint, 5 FROM unnest(h_limits) WITH ORDINALITY s(limits, o), unnest((string_to_array(limits, ','))[2:]) l
           WHERE status[o] = 1 AND NOT replayed[o]) t;
  PERFORM ensure_checkpoints(p_org, a_id, p_at);
  SELECT array_agg(c.settled_micros ORDER BY o), array_agg(c.held_micros ORDER BY o), array_agg(c.floor_micros ORDER BY o)
    INTO a_settled, a_held, a_floor
    FROM unnest(a_id) WITH ORDINALITY t(id, o)
    CROSS JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = t.id ORDER BY x.at DESC, x.step DESC LIMIT 1) c;
  a_was := a_settled; a_was_held := a_held; a_least := array_fill(NULL::bigint, ARRAY[cardinality(a_id)]);
  SELECT array_agg(coalesce(l, '1') ORDER BY o) INTO h_lims FROM (
    SELECT o, string_agg(k::text, ',' ORDER BY k) AS l
      FROM unnest(h_limits) WITH ORDINALITY s(limits, o)
      LEFT JOIN LATERAL unnest(string_to_array(limits, ',')::bigint[]) x(account) ON true
      LEFT JOIN unnest(a_id) WITH ORDINALITY a(id, k) ON a.id = x.account
     GROUP BY o) q;

  FOREACH i IN ARRAY v_new LOOP
    v_lim := string_to_array(h_lims[i], ',')::int[];
    h_own[i] := CASE WHEN cardinality(v_lim) = 1 THEN 0
                     WHEN (SELECT accounts FROM limit_sets x WHERE x.id = h_set[i]) = string_to_array(h_limits[i], ',')::bigint[] THEN h_set[i]
                     ELSE limit_set_of(p_org, string_to_array(h_limits[i], ',')::bigint[]) END;
    v_post := least(p_cost[i], h_ceiling[i]);
    IF h_late[i] THEN
      -- The ceiling left the wallet for suspense when the holder lapsed: take what it cost, give back the rest.
      a_settled[k_suspense] := a_settled[k_suspense] - h_ceiling[i];
      a_settled[k_revenue] := a_settled[k_revenue] + v_post;
      IF v_post > 0 THEN
        t_item := t_item || i; t_kind := t_kind || 'charge'::text; t_debit := t_debit || a_id[k_suspense]; t_credit := t_credit || a_id[k_revenue];
        t_amount := t_amount || v_post; t_direction := t_direction || 0::smallint;
      END IF;
      IF h_ceiling[i] > v_post THEN
        FOREACH j IN ARRAY v_lim LOOP a_settled[j] := a_settled[j] + h_ceiling[i] - v_post; END LOOP;
        t_item := t_item || i; t_kind := t_kind || 'release'::text; t_debit := t_debit || a_id[k_suspense]; t_credit := t_credit || a_id[k_wallet];
        t_amount := t_amount || (h_ceiling[i] - v_post); t_direction := t_direction || (CASE WHEN h_own[i] = 0 THEN 0 ELSE 1 END)::smallint;
      END IF;
    ELSE
      FOREACH j IN ARRAY v_lim LOOP a_held[j] := a_held[j] - h_ceiling[i]; a_settled[j] := a_settled[j] - v_post; END LOOP;
      a_settled[k_revenue] := a_settled[k_revenue] + v_post;
      IF v_post > 0 THEN
        t_item := t_item || i; t_kind := t_kind || 'charge'::text; t_debit := t_debit || a_id[k_wallet]; t_credit := t_credit || a_id[k_revenue];
        t_amount := t_amount || v_post; t_direction := t_direction || (CASE WHEN h_own[i] = 0 THEN 0 ELSE -1 END)::smallint;
      END IF;
    END IF;
    charged[i] := v_post;
    IF p_cost[i] > h_ceiling[i] THEN
      -- More than was held: what every floor allows from the tenant, the rest is the platform's.
      v_fits := p_cost[i] - h_ceiling[i];
      FOREACH j IN ARRAY v_lim LOOP v_fits := least(v_fits, a_settled[j] - a_held[j] - a_floor[j]); END LOOP;
      v_fits := greatest(v_fits, 0);
      IF v_fits > 0 THEN
        FOREACH j IN ARRAY v_lim LOOP a_settled[j] := a_settled[j] - v_fits; END LOOP;
        t_item := t_item || i; t_kind := t_kind || 'overage'::text; t_debit := t_debit || a_id[k_wallet]; t_credit := t_credit || a_id[k_revenue];
        t_amount := t_amount || v_fits; t_direction := t_direction || (CASE WHEN h_own[i] = 0 THEN 0 ELSE -1 END)::smallint;
      END IF;
      charged[i] := v_post + v_fits;
      breach[i] := p_cost[i] - charged[i];
      IF breach[i] > 0 THEN
        a_settled[k_breach] := a_settled[k_breach] - breach[i];
        t_item := t_item || i; t_kind := t_kind || 'breach'::text; t_debit := t_debit || a_id[k_breach]; t_credit := t_credit || a_id[k_revenue];
        t_amount := t_amount || breach[i]; t_direction := t_direction || 0::smallint;
      END IF;
      a_settled[k_revenue] := a_settled[k_revenue] + v_fits + breach[i];
    END IF;
    -- Looked at after each item: a later one may give back what this one took.
    FOREACH j IN ARRAY v_lim LOOP a_least[j] := least(a_least[j], a_settled[j]); END LOOP;
  END LOOP;
  balance := a_settled[k_wallet];

  v_seq := last_seq(p_org);
  INSERT INTO transfers (organization_id, seq, key, phase, kind, debit, credit, amount_micros, limit_set, direction, actor, posted_at)
    SELECT p_org, v_seq + o, p_request[t.i], kind, kind, d, c, a, CASE WHEN dir = 0 THEN 0 ELSE h_own[t.i] END, dir, 'service:gateway', p_at
      FROM unnest(t_item, t_kind, t_debit, t_credit, t_amount, t_direction) WITH ORDINALITY t(i, kind, d, c, a, dir, o);
  PERFORM write_usage(p_org, array_agg(p_request[o] ORDER BY o), array_agg(h.agent_id ORDER BY o), array_agg(h.api_key_id ORDER BY o),
        array_agg(h.end_user ORDER BY o), array_agg(h.limit_set ORDER BY o), array_agg(h.ceiling_micros ORDER BY o), array_agg(h.held_at ORDER BY o),
        array_agg(charged[o] ORDER BY o), array_agg(breach[o] ORDER BY o), array_agg(p_provider[o] ORDER BY o), array_agg(p_model[o] ORDER BY o),
        array_agg(p_price[o] ORDER BY o), array_agg(p_input[o] ORDER BY o), array_agg(p_cached[o] ORDER BY o),
        array_agg(p_cache_write[o] ORDER BY o), array_agg(p_output[o] ORDER BY o), array_agg(p_reasoning[o] ORDER BY o),
        array_agg(p_estimated[o] ORDER BY o), array_agg(p_outcome[o] ORDER BY o), array_agg(p_http_status[o] ORDER BY o),
        array_agg(p_latency[o] ORDER BY o), array_agg(p_overhead[o] ORDER BY o), array_agg(p_first_token[o] ORDER BY o),
        array_agg(p_streamed[o] ORDER BY o), array_agg(p_source[o] ORDER BY o), array_agg(p_attempts[o] ORDER BY o),
        array_agg(p_dialect[o] ORDER BY o), p_at)
    FROM unnest(v_new) o
    CROSS JOIN LATERAL (SELECT * FROM holds x WHERE x.organization_id = p_org AND x.request_id = p_request[o] LIMIT 1) h;
  DELETE FROM open_holds x USING unnest(v_new) o WHERE x.organization_id = p_org AND x.request_id = p_request[o];
  PERFORM move_checkpoints(array_agg(a_id[k]), array_agg(a_settled[k] - a_was[k]), array_agg(a_held[k] - a_was_held[k]), p_at,
                           v_seq + cardinality(t_item))
    FROM generate_series(1, cardinality(a_id)) k WHERE a_settled[k] <> a_was[k] OR a_held[k] <> a_was_held[k] HAVING count(*) > 0;
  PERFORM cross_thresholds(p_org, array_agg(a_id[k]), array_agg(a_least[k]), array_agg(a_was[k] - a_least[k]), array_agg(a_floor[k]),
                           array_agg(c.auto_disable), array_agg(c.disabled), p_at)
    FROM generate_series(1, cardinality(a_id)) k
    CROSS JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = a_id[k] ORDER BY x.at DESC, x.step DESC LIMIT 1) c
   WHERE k <> k_revenue AND k <> k_suspense AND k <> k_breach;
END $$;

-- Settle a batch and then decide a batch of holds, which may have what it freed, in one commit.
CREATE FUNCTION settle_and_place(
  p_org text, p_request text[], p_cost bigint[], p_provider text[], p_model text[], p_price text[],
  p_input bigint[], p_cached bigint[], p_cache_write bigint[], p_output bigint[], p_reasoning bigint[],
  p_estimated boolean[], p_outcome text[], p_http_status int[], p_latency int[], p_overhead int[], p_first_token int[], p_streamed boolean[],
  p_source text[], p_attempts int[], p_dialect text[],
  h_holders text[], h_agents text[], h_versions bigint[], h_request text[], h_holder_of int[], h_agent_of int[], h_api_key text[],
  h_end_user text[], h_routes text[], h_prices text[], h_input bigint[], h_wanted bigint[], h_min bigint[], h_choices int[],
  h_cost_max bigint[], h_fits bigint[], h_input_cost bigint[], h_output_rate bigint[], h_flat bigint[], h_final boolean[],
  OUT status smallint[], OUT charged bigint[], OUT breach bigint[], OUT replayed boolean[], OUT field text[], OUT balance bigint,
  OUT held_status smallint[], OUT output_tokens bigint[], OUT ceiling bigint[], OUT blocker text[], OUT target text[],
  OUT short bigint[], OUT held_replayed boolean[], OUT held_field text[]
) LANGUAGE plpgsql AS $$
BEGIN
  SELECT * INTO status, charged, breach, replayed, field, balance
    FROM settle_holds(p_org, p_request, p_cost, p_provider, p_model, p_price, p_input, p_cached, p_cache_write, p_output, p_reasoning,
                      p_estimated, p_outcome, p_http_status, p_latency, p_overhead, p_first_token, p_streamed,
                            p_source, p_attempts, p_dialect);
  SELECT * INTO held_status, output_tokens, ceiling, blocker, target, short, held_replayed, held_field
    FROM place_holds(p_org, h_holders, h_agents, h_versions, h_request, h_holder_of, h_agent_of, h_api_key, h_end_user, h_routes, h_prices,
                     h_input, h_wanted, h_min, h_choices, h_cost_max, h_fits, h_input_cost, h_output_rate, h_flat, h_final);
END $$;
