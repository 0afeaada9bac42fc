-- Decide a batch of holds of one organization, in order, exactly as if they came one by one; one call is one commit.
--
-- Status of an item: 1 granted, 2 exhausted, 3 in flight (would fit but for other holds; kept only when final), 4 a
-- budget is disabled, 5 voided before it was placed, 6 the path is stale, 7 the key was used for another request
-- (`field` names what differs), 8 the holder's lease has lapsed.

CREATE FUNCTION open_windows(p_org text, p_nodes text[], p_at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  WITH missing AS (
    INSERT INTO accounts (organization_id, kind, budget_id, window_start, opened_at)
      SELECT p_org, 'budget', b.id, window_start(b.period, p_at), p_at
        FROM budgets b
       WHERE b.organization_id = p_org AND b.target_id = ANY (p_nodes)
         AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.organization_id = p_org AND a.kind = 'budget'
                            AND a.budget_id = b.id AND a.window_start = window_start(b.period, p_at))
      RETURNING id)
  INSERT INTO checkpoints (account_id, version, settled_micros, held_micros) SELECT id, 1, 0, 0 FROM missing;
END $$;

CREATE FUNCTION place_holds(
  p_org text, p_holder text, p_request text[], p_agent text[], p_version bigint[], p_api_key text[], p_routes text[],
  p_prices text[], p_input bigint[], p_wanted bigint[], p_min bigint[], p_choices int[],
  p_input_cost bigint[],   -- bound of the input, in millionths of a micro-credit
  p_output_rate bigint[],  -- one output token of every choice, in millionths of a micro-credit
  p_flat bigint[],         -- micro-credits a request
  p_end_user text[],
  p_final boolean[],       -- whether an in-flight refusal is the answer, or will be asked again
  OUT status smallint[], OUT output_tokens bigint[], OUT ceiling bigint[], OUT blocker text[], OUT target text[],
  OUT short bigint[], OUT replayed boolean[], OUT field text[]
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  n int := cardinality(p_request);
  v_at timestamptz;
  v_lapsed boolean;
  v_agents text[]; v_nodes text[]; v_agent_paths text[]; v_agent_versions bigint[]; v_lims text[];  -- one for each agent
  v_agent_of int[];                                                                               -- item → agent
  a_id bigint[]; a_settled bigint[]; a_held bigint[]; a_version bigint[]; a_floor bigint[];        -- one for each account
  a_budget text[]; a_target text[]; a_disabled boolean[]; a_auto boolean[]; a_changed boolean[];
  v_lim int[]; v_full bigint; v_least bigint; v_free bigint; v_headroom bigint; v_worst int; v_spent int; v_stopped int;
  v_unheld bigint; v_ids text[]; i int; j int;
  w_new boolean[]; w_limits text[]; w_disable text[] := '{}';
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  v_lapsed := NOT EXISTS (SELECT 1 FROM leases WHERE holder_id = p_holder AND lapsed_at IS NULL);

  -- Keys that were answered before, and what differs where the request does.
  SELECT array_agg(coalesce(h.status, 0) ORDER BY o), array_agg(coalesce(h.output_tokens, 0) ORDER BY o),
         array_agg(coalesce(h.ceiling_micros, 0) ORDER BY o), array_agg(coalesce(h.blocker, '') ORDER BY o),
         array_agg(coalesce(h.target_id, '') ORDER BY o), array_agg(coalesce(h.short_micros, 0) ORDER BY o),
         array_agg(h.request_id IS NOT NULL ORDER BY o),
         array_agg(CASE WHEN h.request_id IS NULL OR h.status = 5 THEN ''
                        WHEN h.agent_id <> t.agent THEN 'agent_id'
                        WHEN h.routes <> t.routes THEN 'routes'
                        WHEN h.input_tokens_max <> t.input THEN 'input_tokens_max'
                        WHEN h.output_wanted <> t.wanted THEN 'output_tokens_wanted'
                        WHEN h.output_min <> t.least THEN 'output_tokens_min'
                        WHEN h.choices <> t.choices THEN 'choices' ELSE '' END ORDER BY o)
    INTO status, output_tokens, ceiling, blocker, target, short, replayed, field
    FROM unnest(p_request, p_agent, p_routes, p_input, p_wanted, p_min, p_choices)
         WITH ORDINALITY t(request, agent, routes, input, wanted, least, choices, o)
    LEFT JOIN LATERAL (SELECT * FROM holds x WHERE x.organization_id = p_org AND x.request_id = t.request LIMIT 1) h ON true;

  -- Each agent's path as identity last said it.
  SELECT array_agg(agent), array_agg(coalesce(array_to_string(x.path, ','), '')), array_agg(x.path_version)
    INTO v_agents, v_agent_paths, v_agent_versions
    FROM (SELECT DISTINCT agent FROM unnest(p_agent) agent) d
    LEFT JOIN LATERAL (SELECT path, path_version FROM nodes
                        WHERE id = d.agent AND organization_id = p_org ORDER BY path_version DESC LIMIT 1) x ON true;
  SELECT array_agg(array_position(v_agents, agent) ORDER BY o) INTO v_agent_of FROM unnest(p_agent) WITH ORDINALITY t(agent, o);
  SELECT coalesce(array_agg(DISTINCT node), '{}') INTO v_nodes
    FROM unnest(v_agent_paths) p, unnest(string_to_array(p, ',')) node WHERE node <> '';
  PERFORM account_of(p_org, 'wallet');
  PERFORM open_windows(p_org, v_nodes, v_at);

  -- Every account that may refuse: the wallet first, then the windows of now.
  SELECT array_agg(id), array_agg(settled), array_agg(held), array_agg(version), array_agg(floor), array_agg(budget),
         array_agg(target_id), array_agg(disabled), array_agg(auto_disable), array_agg(false)
    INTO a_id, a_settled, a_held, a_version, a_floor, a_budget, a_target, a_disabled, a_auto, a_changed
    FROM (
      SELECT a.id, b.settled, b.held, b.version, 0 AS floor, '' AS budget, '' AS target_id, false AS disabled, false AS auto_disable, 0 AS place
        FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b
       WHERE a.organization_id = p_org AND a.kind = 'wallet' AND a.budget_id IS NULL AND a.window_start IS NULL
      UNION ALL
      SELECT a.id, b.settled, b.held, b.version, -v.limit_micros, g.id, g.target_id, v.disabled, v.auto_disable, 1
        FROM budgets g
        JOIN accounts a ON a.organization_id = p_org AND a.kind = 'budget' AND a.budget_id = g.id
                       AND a.window_start = window_start(g.period, v_at)
        CROSS JOIN LATERAL balance_of(a.id) b
        CROSS JOIN LATERAL (SELECT * FROM budget_versions z WHERE z.budget_id = g.id ORDER BY z.version DESC LIMIT 1) v
       WHERE g.organization_id = p_org AND g.target_id = ANY (v_nodes)
       ORDER BY place, budget) t;

  -- For each agent, which of them stand above it (indexes, the wallet always).
  SELECT array_agg(l ORDER BY o) INTO v_lims FROM (
    SELECT o, '1' || coalesce(string_agg(',' || k, '' ORDER BY k), '') AS l
      FROM unnest(v_agent_paths) WITH ORDINALITY p(path, o)
      LEFT JOIN LATERAL unnest(string_to_array(p.path, ',')) node ON true
      LEFT JOIN (SELECT tgt, k FROM unnest(a_target) WITH ORDINALITY x(tgt, k) WHERE tgt <> '') x ON x.tgt = node
     GROUP BY o) q;

  w_new := array_fill(false, ARRAY[n]);
  w_limits := array_fill(''::text, ARRAY[n]);
  FOR i IN 1..n LOOP
    IF replayed[i] THEN
      IF field[i] <> '' THEN status[i] := 7; END IF;
      CONTINUE;
    END IF;
    IF v_lapsed THEN status[i] := 8; CONTINUE; END IF;
    IF v_agent_versions[v_agent_of[i]] IS DISTINCT FROM p_version[i] THEN status[i] := 6; CONTINUE; END IF;
    v_lim := string_to_array(v_lims[v_agent_of[i]], ',')::int[];
    v_full := (p_input_cost[i] + p_wanted[i] * p_output_rate[i] + 999999) / 1000000 + p_flat[i];
    v_least := (p_input_cost[i] + p_min[i] * p_output_rate[i] + 999999) / 1000000 + p_flat[i];
    v_headroom := NULL; v_worst := NULL; v_unheld := NULL; v_spent := NULL; v_stopped := NULL;
    FOREACH j IN ARRAY v_lim LOOP
      IF a_disabled[j] THEN v_stopped := j; END IF;
      v_free := a_settled[j] - a_held[j] - a_floor[j];
      IF v_headroom IS NULL OR v_free < v_headroom THEN v_headroom := v_free; v_worst := j; END IF;
      v_free := a_settled[j] - a_floor[j];
      IF v_unheld IS NULL OR v_free < v_unheld THEN v_unheld := v_free; v_spent := j; END IF;
    END LOOP;
    output_tokens[i] := 0; ceiling[i] := 0;
    IF v_stopped IS NOT NULL THEN
      status[i] := 4; v_worst := v_stopped;
    ELSIF v_full <= v_headroom THEN
      status[i] := 1; output_tokens[i] := p_wanted[i]; ceiling[i] := v_full;
    ELSIF v_least <= v_headroom THEN
      -- Only a priced output can be why the least fits and the whole does not, so the rate is above 0 here.
      output_tokens[i] := ((v_headroom - p_flat[i]) * 1000000 - p_input_cost[i]) / p_output_rate[i];
      status[i] := 1;
      ceiling[i] := (p_input_cost[i] + output_tokens[i] * p_output_rate[i] + 999999) / 1000000 + p_flat[i];
    ELSIF v_least <= v_unheld THEN
      status[i] := 3;
    ELSE
      -- What is used up stands in the way, which need not be what other holds have taken the most of.
      status[i] := 2; v_worst := v_spent; v_headroom := v_unheld;
    END IF;
    IF status[i] = 1 THEN
      FOREACH j IN ARRAY v_lim LOOP a_held[j] := a_held[j] + ceiling[i]; a_changed[j] := true; END LOOP;
      w_limits[i] := (SELECT string_agg(a_id[k]::text, ',' ORDER BY k) FROM unnest(v_lim) k);
    ELSE
      blocker[i] := CASE WHEN v_worst = 1 THEN 'wallet' ELSE a_budget[v_worst] END;
      target[i] := a_target[v_worst];
      short[i] := greatest(v_least - v_headroom, 0);
      -- Only what would fit an empty window says that this one is used up: else one absurd request stopped everybody.
      IF status[i] = 2 AND a_auto[v_worst] AND NOT a_disabled[v_worst] AND v_least <= -a_floor[v_worst] THEN
        a_disabled[v_worst] := true;
        w_disable := w_disable || a_budget[v_worst];
      END IF;
    END IF;
    w_new[i] := status[i] <> 3 OR p_final[i];
  END LOOP;

  INSERT INTO holds (organization_id, request_id, agent_id, api_key_id, end_user, holder_id, path, routes, price_ids, input_tokens_max,
                     output_wanted, output_min, choices, status, output_tokens, ceiling_micros, limits, blocker, target_id, short_micros, held_at)
    SELECT p_org, p_request[o], p_agent[o], p_api_key[o], p_end_user[o], p_holder, string_to_array(v_agent_paths[v_agent_of[o]], ','), p_routes[o],
           string_to_array(p_prices[o], ','), p_input[o], p_wanted[o], p_min[o], p_choices[o], status[o], output_tokens[o], ceiling[o],
           ('{' || w_limits[o] || '}')::bigint[], blocker[o], target[o], short[o], v_at
      FROM generate_series(1, n) o WHERE w_new[o];
  INSERT INTO open_holds (organization_id, request_id, holder_id, held_at)
    SELECT p_org, p_request[o], p_holder, v_at FROM generate_series(1, n) o WHERE w_new[o] AND status[o] = 1;
  INSERT INTO checkpoints (account_id, version, settled_micros, held_micros)
    SELECT id, v + 1, s, h FROM unnest(a_id, a_version, a_settled, a_held, a_changed) t(id, v, s, h, changed) WHERE changed;
  v_ids := w_disable;
  PERFORM disable_budgets(p_org, v_ids, v_at);
  PERFORM append_audit(p_org, v_at, array_agg(p_agent[o]), array_agg('hold.refused'::text), array_agg(p_request[o]),
      array_agg('{"account":' || to_json(blocker[o]) || ',"short_micros":' || short[o] || ',"status":' || status[o] || '}'))
    FROM generate_series(1, n) o WHERE w_new[o] AND status[o] <> 1 HAVING count(*) > 0;
END $$;

-- Stop the targets of budgets that were exceeded; the caller holds the lock.
CREATE FUNCTION disable_budgets(p_org text, p_budgets text[], p_at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF cardinality(p_budgets) = 0 THEN RETURN; END IF;
  INSERT INTO budget_versions (budget_id, version, limit_micros, auto_disable, disabled, request_id, actor, recorded_at)
    SELECT v.budget_id, v.version + 1, v.limit_micros, v.auto_disable, true, '', 'service:ledger', p_at
      FROM (SELECT DISTINCT unnest(p_budgets) AS id) b
      CROSS JOIN LATERAL (SELECT * FROM budget_versions z WHERE z.budget_id = b.id ORDER BY z.version DESC LIMIT 1) v
     WHERE NOT v.disabled;
  PERFORM append_audit(p_org, p_at, array_agg('service:ledger'::text), array_agg('budget.disabled'::text), array_agg(id), array_agg('{}'::text))
    FROM (SELECT DISTINCT unnest(p_budgets) AS id) b HAVING count(*) > 0;
END $$;
