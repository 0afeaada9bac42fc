-- Settle a batch of one organization's holds with what they cost; one call is one commit.
--
-- Status of an item: 1 settled, 2 no such hold was granted, 3 it was voided, 4 it was resolved by hand, 5 it was settled
-- with other figures (`field` names what differs).

CREATE FUNCTION settle_holds(
  p_org text, p_request text[], p_cost bigint[], p_provider text[], p_model text[], p_price text[],
  p_input bigint[], p_cached bigint[], p_cache_write bigint[], p_output bigint[], p_reasoning bigint[],
  p_estimated boolean[], p_outcome text[], p_http_status int[], p_latency int[], p_overhead int[], p_first_token int[], p_streamed boolean[],
  OUT status smallint[], OUT charged bigint[], OUT breach bigint[], OUT replayed boolean[], OUT field text[], OUT balance bigint
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  n int := cardinality(p_request);
  v_at timestamptz; v_seq bigint; v_usage_seq bigint; i int; j int;
  h_ceiling bigint[]; h_late boolean[]; h_limits text[];                                 -- one for each item
  h_lims text[];                                                                        -- the same as indexes
  a_id bigint[]; a_settled bigint[]; a_held bigint[]; a_version bigint[]; a_floor bigint[]; a_changed boolean[]; a_hit boolean[];
  v_lim int[]; v_own text; v_post bigint; v_fits bigint;
  t_key text[] := '{}'; t_phase text[] := '{}'; t_kind text[] := '{}'; t_debit bigint[] := '{}'; t_credit bigint[] := '{}';
  t_amount bigint[] := '{}'; t_limits text[] := '{}'; t_direction smallint[] := '{}';
  k_wallet constant int := 1; k_revenue constant int := 2; k_suspense constant int := 3; k_breach constant int := 4;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  SELECT array_agg(CASE WHEN h.request_id IS NULL OR h.status <> 1 THEN 2 WHEN f.voided THEN 3 WHEN f.resolved THEN 4 ELSE 1 END::smallint ORDER BY o),
         array_agg(coalesce(f.charged, 0) ORDER BY o), array_agg(coalesce(f.breach, 0) ORDER BY o),
         array_agg(coalesce(f.settled, false) ORDER BY o), array_agg(coalesce(h.ceiling_micros, 0) ORDER BY o),
         array_agg(coalesce(f.uncertain, false) ORDER BY o),
         array_agg(array_to_string(h.limits[1:1] || budget_limits(p_org, h.request_id, h.limits), ',') ORDER BY o),
         array_agg(CASE WHEN u.request_id IS NULL THEN ''
                        WHEN u.provider <> t.provider OR u.model <> t.model THEN 'route'
                        WHEN u.input_tokens <> t.input THEN 'usage.input_tokens'
                        WHEN u.cached_input_tokens <> t.cached THEN 'usage.cached_input_tokens'
                        WHEN u.cache_write_tokens <> t.cache_write THEN 'usage.cache_write_tokens'
                        WHEN u.output_tokens <> t.output THEN 'usage.output_tokens'
                        WHEN u.reasoning_tokens <> t.reasoning THEN 'usage.reasoning_tokens'
                        WHEN u.outcome <> t.outcome THEN 'outcome' ELSE '' END ORDER BY o)
    INTO status, charged, breach, replayed, h_ceiling, h_late, h_limits, field
    FROM unnest(p_request, p_provider, p_model, p_input, p_cached, p_cache_write, p_output, p_reasoning, p_outcome)
         WITH ORDINALITY t(request, provider, model, input, cached, cache_write, output, reasoning, outcome, o)
    LEFT JOIN LATERAL (SELECT * FROM holds x WHERE x.organization_id = p_org AND x.request_id = t.request LIMIT 1) h ON true
    LEFT JOIN LATERAL (
      SELECT bool_or(phase = 'voided') AS voided, bool_or(phase = 'resolved') AS resolved, bool_or(phase = 'settled') AS settled,
             bool_or(phase = 'uncertain') AS uncertain, max(charged_micros) FILTER (WHERE phase = 'settled') AS charged,
             max(breach_micros) FILTER (WHERE phase = 'settled') AS breach
        FROM outcomes x WHERE x.organization_id = p_org AND x.request_id = t.request) f ON true
    LEFT JOIN LATERAL (SELECT * FROM usage x WHERE x.organization_id = p_org AND x.request_id = t.request LIMIT 1) u ON true;

  SELECT array_agg(id ORDER BY place, id) INTO a_id FROM (
    SELECT account_of(p_org, 'wallet') AS id, 1 AS place
    UNION SELECT account_of(p_org, 'revenue'), 2
    UNION SELECT account_of(p_org, 'suspense'), 3
    UNION SELECT account_of(p_org, 'breach'), 4
    UNION SELECT l::bigint, 5 FROM unnest(h_limits) WITH ORDINALITY s(limits, o), unnest((string_to_array(limits, ','))[2:]) l
           WHERE status[o] = 1 AND NOT replayed[o]) t;
  SELECT array_agg(b.settled ORDER BY o), array_agg(b.held ORDER BY o), array_agg(b.version ORDER BY o), array_agg(false), array_agg(false),
         array_agg(CASE WHEN a.kind = 'budget' THEN -(SELECT z.limit_micros FROM budget_versions z WHERE z.budget_id = a.budget_id
                                                       ORDER BY z.version DESC LIMIT 1) ELSE 0 END ORDER BY o)
    INTO a_settled, a_held, a_version, a_changed, a_hit, a_floor
    FROM unnest(a_id) WITH ORDINALITY t(id, o) JOIN accounts a USING (id) CROSS JOIN LATERAL balance_of(a.id) b;
  SELECT array_agg(coalesce(l, '1') ORDER BY o) INTO h_lims FROM (
    SELECT o, string_agg(k::text, ',' ORDER BY k) AS l
      FROM unnest(h_limits) WITH ORDINALITY s(limits, o)
      LEFT JOIN LATERAL unnest(string_to_array(limits, ',')::bigint[]) x(account) ON true
      LEFT JOIN unnest(a_id) WITH ORDINALITY a(id, k) ON a.id = x.account
     GROUP BY o) q;

  FOR i IN 1..n LOOP
    IF replayed[i] THEN
      IF field[i] <> '' THEN status[i] := 5; END IF;
      CONTINUE;
    END IF;
    IF status[i] <> 1 THEN CONTINUE; END IF;
    v_lim := string_to_array(h_lims[i], ',')::int[];
    v_own := coalesce((SELECT string_agg(a_id[k]::text, ',') FROM unnest(v_lim[2:]) k), '');
    v_post := least(p_cost[i], h_ceiling[i]);
    IF h_late[i] THEN
      -- The ceiling left the wallet for suspense when the holder lapsed: take what it cost, give back the rest.
      a_settled[k_suspense] := a_settled[k_suspense] - h_ceiling[i];
      a_settled[k_revenue] := a_settled[k_revenue] + v_post;
      a_changed[k_suspense] := true; a_changed[k_revenue] := true;
      IF v_post > 0 THEN
        t_key := t_key || p_request[i]; t_phase := t_phase || 'charge'::text; t_kind := t_kind || 'charge'::text;
        t_debit := t_debit || a_id[k_suspense]; t_credit := t_credit || a_id[k_revenue]; t_amount := t_amount || v_post;
        t_limits := t_limits || ''::text; t_direction := t_direction || 0::smallint;
      END IF;
      IF h_ceiling[i] > v_post THEN
        FOREACH j IN ARRAY v_lim LOOP a_settled[j] := a_settled[j] + h_ceiling[i] - v_post; a_changed[j] := true; END LOOP;
        t_key := t_key || p_request[i]; t_phase := t_phase || 'release'::text; t_kind := t_kind || 'release'::text;
        t_debit := t_debit || a_id[k_suspense]; t_credit := t_credit || a_id[k_wallet]; t_amount := t_amount || (h_ceiling[i] - v_post);
        t_limits := t_limits || v_own; t_direction := t_direction || (CASE WHEN v_own = '' THEN 0 ELSE 1 END)::smallint;
      END IF;
    ELSE
      FOREACH j IN ARRAY v_lim LOOP
        a_held[j] := a_held[j] - h_ceiling[i]; a_settled[j] := a_settled[j] - v_post; a_changed[j] := true;
      END LOOP;
      a_settled[k_revenue] := a_settled[k_revenue] + v_post; a_changed[k_revenue] := true;
      IF v_post > 0 THEN
        t_key := t_key || p_request[i]; t_phase := t_phase || 'charge'::text; t_kind := t_kind || 'charge'::text;
        t_debit := t_debit || a_id[k_wallet]; t_credit := t_credit || a_id[k_revenue]; t_amount := t_amount || v_post;
        t_limits := t_limits || v_own; t_direction := t_direction || (CASE WHEN v_own = '' THEN 0 ELSE -1 END)::smallint;
      END IF;
    END IF;
    charged[i] := v_post;
    IF p_cost[i] > h_ceiling[i] THEN
      -- More than was held: what every floor allows from the tenant, the rest is the platform's.
      v_fits := p_cost[i] - h_ceiling[i];
      FOREACH j IN ARRAY v_lim LOOP v_fits := least(v_fits, a_settled[j] - a_held[j] - a_floor[j]); END LOOP;
      v_fits := greatest(v_fits, 0);
      IF v_fits > 0 THEN
        FOREACH j IN ARRAY v_lim LOOP a_settled[j] := a_settled[j] - v_fits; a_changed[j] := true; END LOOP;
        t_key := t_key || p_request[i]; t_phase := t_phase || 'overage'::text; t_kind := t_kind || 'overage'::text;
        t_debit := t_debit || a_id[k_wallet]; t_credit := t_credit || a_id[k_revenue]; t_amount := t_amount || v_fits;
        t_limits := t_limits || v_own; t_direction := t_direction || (CASE WHEN v_own = '' THEN 0 ELSE -1 END)::smallint;
      END IF;
      charged[i] := v_post + v_fits;
      breach[i] := p_cost[i] - charged[i];
      IF breach[i] > 0 THEN
        a_settled[k_breach] := a_settled[k_breach] - breach[i]; a_changed[k_breach] := true;
        t_key := t_key || p_request[i]; t_phase := t_phase || 'breach'::text; t_kind := t_kind || 'breach'::text;
        t_debit := t_debit || a_id[k_breach]; t_credit := t_credit || a_id[k_revenue]; t_amount := t_amount || breach[i];
        t_limits := t_limits || ''::text; t_direction := t_direction || 0::smallint;
      END IF;
      a_settled[k_revenue] := a_settled[k_revenue] + v_fits + breach[i];
    END IF;
    -- Looked at after each item: a later one may give back what this one took.
    FOREACH j IN ARRAY v_lim LOOP a_hit[j] := a_hit[j] OR a_settled[j] <= a_floor[j]; END LOOP;
  END LOOP;

  SELECT coalesce(max(seq), 0) INTO v_seq FROM transfers WHERE organization_id = p_org;
  INSERT INTO transfers (organization_id, seq, key, phase, kind, debit, credit, amount_micros, limits, direction, actor, posted_at)
    SELECT p_org, v_seq + o, k, p, kind, d, c, a, ('{' || l || '}')::bigint[], dir, 'service:gateway', v_at
      FROM unnest(t_key, t_phase, t_kind, t_debit, t_credit, t_amount, t_limits, t_direction) WITH ORDINALITY t(k, p, kind, d, c, a, l, dir, o);
  INSERT INTO outcomes (organization_id, request_id, phase, charged_micros, breach_micros, reason, decided_at)
    SELECT p_org, p_request[o], 'settled', charged[o], breach[o], p_outcome[o], v_at
      FROM generate_series(1, n) o WHERE status[o] = 1 AND NOT replayed[o];
  SELECT coalesce(max(seq), 0) INTO v_usage_seq FROM usage WHERE organization_id = p_org;
  INSERT INTO usage (organization_id, seq, request_id, path, agent_id, api_key_id, end_user, provider, model, price_id, input_tokens, cached_input_tokens,
                     cache_write_tokens, output_tokens, reasoning_tokens, charged_micros, ceiling_micros, breach_micros, estimated,
                     outcome, http_status, latency_ms, overhead_ms, first_token_ms, streamed, held_at, used_at)
    SELECT p_org, v_usage_seq + row_number() OVER (ORDER BY o), h.request_id, h.path, h.agent_id, h.api_key_id, h.end_user, p_provider[o], p_model[o], p_price[o],
           p_input[o], p_cached[o], p_cache_write[o], p_output[o], p_reasoning[o], charged[o], h.ceiling_micros, breach[o], p_estimated[o], p_outcome[o],
           p_http_status[o], p_latency[o], p_overhead[o], p_first_token[o], p_streamed[o], h.held_at, v_at
      FROM generate_series(1, n) o
      CROSS JOIN LATERAL (SELECT x.request_id, x.path, x.agent_id, x.api_key_id, x.end_user, x.ceiling_micros, x.held_at FROM holds x
                           WHERE x.organization_id = p_org AND x.request_id = p_request[o] LIMIT 1) h
     WHERE status[o] = 1 AND NOT replayed[o];
  DELETE FROM open_holds x USING unnest(p_request) r WHERE x.organization_id = p_org AND x.request_id = r;
  -- A recount saw none of this statement's own rows, so every balance here is right whether it came from one or not.
  INSERT INTO checkpoints (account_id, version, settled_micros, held_micros)
    SELECT id, v + 1, s, h FROM unnest(a_id, a_version, a_settled, a_held, a_changed) t(id, v, s, h, changed) WHERE changed;
  PERFORM disable_budgets(p_org, array_agg(a.budget_id), v_at)
    FROM unnest(a_id, a_hit) t(id, hit) JOIN accounts a ON a.id = t.id
    CROSS JOIN LATERAL (SELECT * FROM budget_versions z WHERE z.budget_id = a.budget_id ORDER BY z.version DESC LIMIT 1) v
   WHERE t.hit AND a.kind = 'budget' AND v.auto_disable AND NOT v.disabled HAVING count(*) > 0;
  PERFORM append_audit(p_org, v_at, array_agg(h.agent_id ORDER BY o), array_agg('charge.settled'::text ORDER BY o), array_agg(p_request[o] ORDER BY o),
      array_agg('{"breach_micros":' || breach[o] || ',"charged_micros":' || charged[o] || ',"model":' || to_json(p_model[o]) || ',"outcome":'
        || to_json(p_outcome[o]) || ',"price_id":' || to_json(p_price[o]) || ',"provider":' || to_json(p_provider[o]) || '}' ORDER BY o))
    FROM generate_series(1, n) o
    CROSS JOIN LATERAL (SELECT agent_id FROM holds x WHERE x.organization_id = p_org AND x.request_id = p_request[o] LIMIT 1) h
   WHERE status[o] = 1 AND NOT replayed[o] HAVING count(*) > 0;
  balance := a_settled[k_wallet];
END $$;
