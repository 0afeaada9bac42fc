-- Decide a batch of holds of one organization, in order, exactly as if they came one by one; one call is one commit.
--
-- Status of an item: 1 granted, 2 exhausted, 3 in flight (would fit but for other holds; kept only when final), 4 a
-- budget is disabled, 5 voided before it was placed, 6 the path is stale, 7 the key was used for another request
-- (`field` names what differs), 8 the holder's lease has lapsed, 9 even the least may cost more than the request's own limit.
--
-- A batch that fits as a whole fits one by one, whatever the order: it is decided by sums, an account at a time. Only a
-- batch in which something is refused, clamped or repeated is walked through.

-- What a node's settled holds since a moment came to, up to a usage row. Rows never change, so what was counted without the
-- lock is still right under it.
CREATE FUNCTION count_spent(p_org text, p_target text, p_start timestamptz, p_after bigint, p_until bigint) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT coalesce(sum(u.charged_micros), 0)::bigint FROM usage u
   WHERE u.organization_id = p_org AND u.seq > p_after AND u.seq <= p_until AND u.held_at >= p_start AND p_target = ANY (u.path)
$$;

-- What a node's holds and charges came to since a moment: spent (settled, or suspended while uncertain), and held. Usage rows
-- up to `p_counted` were counted before, to `p_known`.
CREATE FUNCTION spent_since(p_org text, p_target text, p_start timestamptz, p_counted bigint, p_known bigint, OUT spent bigint, OUT held bigint)
LANGUAGE plpgsql AS $$
BEGIN
  spent := p_known + count_spent(p_org, p_target, p_start, greatest(p_counted, usage_before(p_org, p_start)), last_usage(p_org));
  -- Holds that became uncertain and were never settled stand with their last word.
  SELECT spent + coalesce(sum(last.charged_micros), 0) INTO spent
    FROM outcomes o
    JOIN holds h ON h.organization_id = p_org AND h.request_id = o.request_id
    JOIN limit_sets s ON s.id = h.limit_set
    CROSS JOIN LATERAL (SELECT x.charged_micros FROM outcomes x WHERE x.organization_id = p_org AND x.request_id = o.request_id
                         ORDER BY x.phase = 'uncertain' LIMIT 1) last
   WHERE o.organization_id = p_org AND o.phase = 'uncertain' AND h.held_at >= p_start AND p_target = ANY (s.path)
     AND NOT EXISTS (SELECT 1 FROM usage u WHERE u.organization_id = p_org AND u.request_id = o.request_id);
  SELECT coalesce(sum(h.ceiling_micros), 0) INTO held
    FROM open_holds o
    JOIN holds h ON h.organization_id = p_org AND h.request_id = o.request_id
    JOIN limit_sets s ON s.id = h.limit_set
   WHERE o.organization_id = p_org AND h.held_at >= p_start AND p_target = ANY (s.path);
END $$;

CREATE FUNCTION last_usage(p_org text) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN coalesce((SELECT seq FROM usage WHERE organization_id = p_org ORDER BY seq DESC LIMIT 1), 0);
END $$;

-- The last usage row before a moment, found by halving: rows are in the order of their time.
CREATE FUNCTION usage_before(p_org text, p_at timestamptz) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_low bigint := 0; v_high bigint := last_usage(p_org); v_middle bigint;
BEGIN
  WHILE v_low < v_high LOOP
    v_middle := (v_low + v_high + 1) / 2;
    IF (SELECT used_at FROM usage WHERE organization_id = p_org AND seq = v_middle) < p_at THEN v_low := v_middle; ELSE v_high := v_middle - 1; END IF;
  END LOOP;
  RETURN v_low;
END $$;

-- Open a budget's account for the window of now. Holds open the windows of every budget above them, so a window that is
-- opened after its start has seen nothing, unless the budget is new.
CREATE FUNCTION open_window(
  p_org text, p_budget text, p_target text, p_start timestamptz, p_at timestamptz, p_fresh boolean, p_counted bigint, p_known bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint; v_spent bigint := 0; v_held bigint := 0;
BEGIN
  IF p_fresh THEN SELECT * INTO v_spent, v_held FROM spent_since(p_org, p_target, p_start, p_counted, p_known); END IF;
  INSERT INTO accounts (organization_id, kind, budget_id, window_start, opening_micros, opened_at)
    VALUES (p_org, 'budget', p_budget, p_start, -v_spent, p_at) RETURNING id INTO v_id;
  PERFORM open_checkpoint(v_id, p_at - interval '1 microsecond', v_held);
  IF p_fresh THEN
    -- Open holds, and uncertain ones that may yet give some back, count against it from now on.
    INSERT INTO hold_links (organization_id, request_id, account_id)
      SELECT p_org, h.request_id, v_id
        FROM (SELECT request_id FROM open_holds WHERE organization_id = p_org
              UNION SELECT request_id FROM outcomes WHERE organization_id = p_org AND phase = 'uncertain') o
        JOIN holds h ON h.organization_id = p_org AND h.request_id = o.request_id
        JOIN limit_sets s ON s.id = h.limit_set
       WHERE h.held_at >= p_start AND p_target = ANY (s.path)
         AND NOT EXISTS (SELECT 1 FROM usage u WHERE u.organization_id = p_org AND u.request_id = h.request_id)
         AND NOT EXISTS (SELECT 1 FROM outcomes x WHERE x.organization_id = p_org AND x.request_id = h.request_id AND x.phase <> 'uncertain');
  END IF;
  RETURN v_id;
END $$;

-- The set of accounts above an agent as of now, made when the last one is out of date; NULL when its path is not at
-- `p_version`.
CREATE FUNCTION agent_limits(p_org text, p_agent text, p_version bigint, p_budgets int, p_rules int, p_at timestamptz)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_id bigint; v_path text[]; v_known bigint; v_accounts bigint[]; v_account bigint; v_until timestamptz := 'infinity'; g budgets; w record;
BEGIN
  SELECT path, path_version INTO v_path, v_known FROM nodes
    WHERE id = p_agent AND organization_id = p_org ORDER BY path_version DESC LIMIT 1;
  IF v_known IS DISTINCT FROM p_version THEN RETURN NULL; END IF;
  v_accounts := ARRAY[account_of(p_org, 'wallet')];
  FOR g IN SELECT * FROM budgets b WHERE b.organization_id = p_org AND b.target_id = ANY (v_path) ORDER BY b.id LOOP
    SELECT * INTO w FROM window_of(p_org, g.period, p_at);
    v_until := least(v_until, w.ends);
    SELECT id INTO v_account FROM accounts
      WHERE organization_id = p_org AND kind = 'budget' AND budget_id = g.id AND window_start = w.starts;
    IF v_account IS NULL THEN
      v_account := open_window(p_org, g.id, g.target_id, w.starts, p_at, false, 0, 0);
    END IF;
    v_accounts := v_accounts || v_account;
  END LOOP;
  INSERT INTO limit_sets (organization_id, agent_id, path, accounts, path_version, budgets, rules, until)
    VALUES (p_org, p_agent, v_path, v_accounts, p_version, p_budgets, p_rules, v_until) RETURNING id INTO v_id;
  RETURN v_id;
END $$;

-- Each agent's accounts: its newest set, if that is still of now; NULL for a stale path.
CREATE FUNCTION sets_of(p_org text, p_agents text[], p_versions bigint[], p_at timestamptz) RETURNS bigint[] LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE v_budgets int; v_rules int; v_sets bigint[];
BEGIN
  SELECT coalesce((SELECT b.ordinal FROM budgets b WHERE b.organization_id = p_org ORDER BY b.ordinal DESC LIMIT 1), 0),
         coalesce((SELECT r.version FROM rules r WHERE r.organization_id = p_org ORDER BY r.version DESC LIMIT 1), 0)
    INTO v_budgets, v_rules;
  SELECT array_agg(CASE WHEN s.path_version = t.version AND k.path_version = t.version AND s.budgets = v_budgets AND s.rules = v_rules
                         AND s.until > p_at THEN s.id
                        ELSE agent_limits(p_org, t.agent, t.version, v_budgets, v_rules, p_at) END ORDER BY t.o)
    INTO v_sets
    FROM unnest(p_agents, p_versions) WITH ORDINALITY t(agent, version, o)
    LEFT JOIN LATERAL (SELECT * FROM limit_sets x WHERE x.organization_id = p_org AND x.agent_id = t.agent ORDER BY x.id DESC LIMIT 1) s ON true
    LEFT JOIN LATERAL (SELECT x.path_version FROM nodes x WHERE x.id = t.agent ORDER BY x.path_version DESC LIMIT 1) k ON true;
  RETURN v_sets;
END $$;

CREATE FUNCTION place_holds(
  p_org text, p_holders text[], p_agents text[], p_versions bigint[],  -- distinct; items refer to them by index, from 1
  p_request text[], p_holder_of int[], p_agent_of int[], p_api_key text[], p_end_user text[], p_routes text[], p_prices text[],
  p_input bigint[], p_wanted bigint[], p_min bigint[], p_choices int[],
  p_cost_max bigint[],     -- the most that the request may cost; 0: no limit of its own
  p_fits bigint[],         -- of the wanted tokens, those that this limit allows; below 0 where it allows no request at all
  p_input_cost bigint[],   -- bound of the input, in millionths of a micro-credit
  p_output_rate bigint[],  -- one output token of every choice, in millionths of a micro-credit
  p_flat bigint[],         -- micro-credits a request
  p_final boolean[],       -- whether an in-flight refusal is the answer, or will be asked again
  OUT status smallint[], OUT output_tokens bigint[], OUT ceiling bigint[], OUT blocker text[], OUT target text[],
  OUT short bigint[], OUT replayed boolean[], OUT field text[]
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_nestloop = on AS $$
DECLARE
  n int := cardinality(p_request);
  v_at timestamptz; v_plain boolean; v_allowed boolean; v_seq bigint;
  v_sets bigint[];                                                             -- one for each agent
  v_full bigint[];                                                             -- one for each item
  a_id bigint[]; a_step smallint[]; a_settled bigint[]; a_held bigint[]; a_floor bigint[]; a_disabled boolean[]; a_auto boolean[];  -- for each account
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  PERFORM expire_grants(p_org, v_at);
  v_sets := sets_of(p_org, p_agents, p_versions, v_at);
  v_plain := array_position(v_sets, NULL) IS NULL
    AND NOT EXISTS (SELECT 1 FROM unnest(p_holders) h(id)
                     WHERE NOT EXISTS (SELECT 1 FROM leases l WHERE l.holder_id = h.id AND l.lapsed_at IS NULL))
    AND NOT EXISTS (SELECT 1 FROM unnest(p_request) r(id)
                     CROSS JOIN LATERAL (SELECT 1 FROM holds x WHERE x.organization_id = p_org AND x.request_id = r.id LIMIT 1) h);
  IF v_plain THEN
    SELECT array_agg((c + w * r + 999999) / 1000000 + f ORDER BY o), bool_and(w >= l) INTO v_full, v_allowed
      FROM unnest(p_input_cost, p_fits, p_output_rate, p_flat, p_min) WITH ORDINALITY t(c, w, r, f, l, o);
    SELECT array_agg(q.account), array_agg(CASE WHEN c.at = v_at THEN c.step + 1 ELSE 0 END), array_agg(c.settled_micros),
           array_agg(c.held_micros + q.asked), array_agg(c.floor_micros), array_agg(c.disabled), array_agg(c.auto_disable),
           coalesce(bool_and(c.settled_micros - c.held_micros - q.asked >= c.floor_micros AND NOT c.disabled), false)
      INTO a_id, a_step, a_settled, a_held, a_floor, a_disabled, a_auto, v_plain
      FROM (
        SELECT l.account, sum(g.asked)::bigint AS asked
          FROM (SELECT k, sum(f) AS asked FROM unnest(p_agent_of, v_full) i(k, f) GROUP BY k) g
          CROSS JOIN LATERAL (SELECT unnest(s.accounts) AS account FROM limit_sets s WHERE s.id = v_sets[g.k]) l
         GROUP BY l.account) q
      LEFT JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = q.account ORDER BY x.at DESC, x.step DESC LIMIT 1) c ON true;
    v_plain := v_plain AND v_allowed AND array_position(a_settled, NULL) IS NULL;
  END IF;
  IF NOT v_plain THEN
    SELECT * INTO status, output_tokens, ceiling, blocker, target, short, replayed, field
      FROM walk_holds(p_org, v_at, v_sets, p_holders, p_agents, p_request, p_holder_of, p_agent_of, p_api_key, p_end_user, p_routes, p_prices,
                      p_input, p_wanted, p_min, p_choices, p_cost_max, p_fits, p_input_cost, p_output_rate, p_flat, p_final);
    RETURN;
  END IF;

  v_seq := last_seq(p_org);
  status := array_fill(1::smallint, ARRAY[n]);
  output_tokens := p_fits;
  ceiling := v_full;
  blocker := array_fill(''::text, ARRAY[n]);
  target := blocker; field := blocker;
  short := array_fill(0::bigint, ARRAY[n]);
  replayed := array_fill(false, ARRAY[n]);
  INSERT INTO holds (organization_id, request_id, agent_id, api_key_id, end_user, holder_id, routes, price_ids, input_tokens_max, output_wanted,
                     output_min, choices, cost_max_micros, status, output_tokens, ceiling_micros, limit_set, blocker, target_id, short_micros, held_at)
    SELECT p_org, r, p_agents[a], k, e, p_holders[h], rt, string_to_array(pr, ','), i, w, m, ch, cm, 1, ft, f, v_sets[a], '', '', 0, v_at
      FROM unnest(p_request, p_agent_of, p_api_key, p_end_user, p_holder_of, p_routes, p_prices, p_input, p_wanted, p_min, p_choices, p_cost_max,
                  p_fits, v_full)
           t(r, a, k, e, h, rt, pr, i, w, m, ch, cm, ft, f);
  INSERT INTO open_holds (organization_id, request_id, holder_id, held_at)
    SELECT p_org, r, p_holders[h], v_at FROM unnest(p_request, p_holder_of) t(r, h);
  INSERT INTO checkpoints (account_id, at, step, transfer_seq, settled_micros, held_micros, floor_micros, disabled, auto_disable)
    SELECT id, v_at, st, v_seq, s, h, f, d, a
      FROM unnest(a_id, a_step, a_settled, a_held, a_floor, a_disabled, a_auto) t(id, st, s, h, f, d, a);
END $$;

-- Walk through a batch of holds, item by item; place_holds has the lock and the agents' sets.
CREATE FUNCTION walk_holds(
  p_org text, p_at timestamptz, p_sets bigint[], p_holders text[], p_agents text[], p_request text[], p_holder_of int[], p_agent_of int[],
  p_api_key text[], p_end_user text[], p_routes text[], p_prices text[], p_input bigint[], p_wanted bigint[], p_min bigint[], p_choices int[],
  p_cost_max bigint[], p_fits bigint[], p_input_cost bigint[], p_output_rate bigint[], p_flat bigint[], p_final boolean[],
  OUT status smallint[], OUT output_tokens bigint[], OUT ceiling bigint[], OUT blocker text[], OUT target text[],
  OUT short bigint[], OUT replayed boolean[], OUT field text[]
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_nestloop = off AS $$
DECLARE
  n int := cardinality(p_request);
  v_lapsed boolean[];
  v_lims text[];                                                               -- one for each agent: indexes of its accounts
  a_id bigint[]; a_settled bigint[]; a_held bigint[]; a_floor bigint[];        -- one for each account
  a_budget text[]; a_target text[]; a_disabled boolean[]; a_auto boolean[]; a_changed boolean[];
  a_charged bigint[];                                                          -- by charges of one phase in this batch
  v_lim int[]; v_full bigint; v_least bigint; v_free bigint; v_headroom bigint; v_worst int; v_spent int; v_stopped int;
  v_unheld bigint; i int; j int;
  w_new boolean[]; w_disable text[] := '{}';
BEGIN
  -- Keys that were answered before, and what differs where the request does.
  SELECT array_agg(coalesce(h.status, 0) ORDER BY o), array_agg(coalesce(h.output_tokens, 0) ORDER BY o),
         array_agg(coalesce(h.ceiling_micros, 0) ORDER BY o), array_agg(coalesce(h.blocker, '') ORDER BY o),
         array_agg(coalesce(h.target_id, '') ORDER BY o), array_agg(coalesce(h.short_micros, 0) ORDER BY o),
         array_agg(h.request_id IS NOT NULL ORDER BY o),
         array_agg(CASE WHEN h.request_id IS NULL OR h.status = 5 THEN ''
                        WHEN (h.holder_id = '') <> (t.holder = '') THEN 'phase'  -- a hold, or a charge at once
                        WHEN h.agent_id <> t.agent THEN 'agent_id'
                        WHEN h.routes <> t.routes THEN 'routes'
                        WHEN h.input_tokens_max <> t.input THEN 'input_tokens_max'
                        WHEN h.output_wanted <> t.wanted THEN 'output_tokens_wanted'
                        WHEN h.output_min <> t.least THEN 'output_tokens_min'
                        WHEN h.choices <> t.choices THEN 'choices'
                        WHEN h.cost_max_micros <> t.cost_max THEN 'cost_max_micros'
                        WHEN h.end_user <> t.end_user THEN 'end_user'
                        WHEN h.api_key_id <> t.api_key THEN 'api_key_id' ELSE '' END ORDER BY o)
    INTO status, output_tokens, ceiling, blocker, target, short, replayed, field
    FROM (SELECT o, request, p_holders[h] AS holder, p_agents[a] AS agent, routes, input, wanted, least, choices, cost_max, end_user, api_key
            FROM unnest(p_request, p_holder_of, p_agent_of, p_routes, p_input, p_wanted, p_min, p_choices, p_cost_max, p_end_user, p_api_key)
                 WITH ORDINALITY x(request, h, a, routes, input, wanted, least, choices, cost_max, end_user, api_key, o)) t
    LEFT JOIN LATERAL (SELECT * FROM holds x WHERE x.organization_id = p_org AND x.request_id = t.request LIMIT 1) h ON true;
  SELECT array_agg(l.holder_id IS NULL ORDER BY o) INTO v_lapsed
    FROM unnest(p_holders) WITH ORDINALITY t(id, o)
    LEFT JOIN LATERAL (SELECT holder_id FROM leases x WHERE x.holder_id = t.id AND x.lapsed_at IS NULL LIMIT 1) l ON true;

  -- Every account that may refuse: the wallet first, then the budgets' windows by the budgets' ids.
  PERFORM ensure_checkpoints(p_org, array_agg(DISTINCT a), p_at)
    FROM unnest(p_sets) s(id) JOIN LATERAL (SELECT accounts FROM limit_sets x WHERE x.id = s.id LIMIT 1) x ON true, unnest(x.accounts) a;
  SELECT array_agg(t.id), array_agg(settled), array_agg(held), array_agg(floor), array_agg(budget), array_agg(target_id),
         array_agg(disabled), array_agg(auto_disable), array_agg(false)
    INTO a_id, a_settled, a_held, a_floor, a_budget, a_target, a_disabled, a_auto, a_changed
    FROM (
      SELECT q.id, c.settled_micros AS settled, c.held_micros AS held, c.floor_micros AS floor, coalesce(a.budget_id, '') AS budget,
             coalesce(g.target_id, '') AS target_id, c.disabled, c.auto_disable
        FROM (SELECT DISTINCT account AS id
                FROM unnest(p_sets) s(id) JOIN LATERAL (SELECT accounts FROM limit_sets x WHERE x.id = s.id LIMIT 1) x ON true,
                     unnest(x.accounts) account) q
        CROSS JOIN LATERAL (SELECT x.budget_id FROM accounts x WHERE x.id = q.id LIMIT 1) a
        LEFT JOIN LATERAL (SELECT x.target_id FROM budgets x WHERE x.id = a.budget_id LIMIT 1) g ON true
        CROSS JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = q.id ORDER BY x.at DESC, x.step DESC LIMIT 1) c
       ORDER BY a.budget_id NULLS FIRST, q.id) t;
  SELECT array_agg(l ORDER BY o) INTO v_lims FROM (
    SELECT o, string_agg(k::text, ',' ORDER BY k) AS l
      FROM unnest(p_sets) WITH ORDINALITY s(id, o)
      JOIN LATERAL (SELECT accounts FROM limit_sets x WHERE x.id = s.id LIMIT 1) x ON true, unnest(x.accounts) account
      JOIN unnest(a_id) WITH ORDINALITY a(id, k) ON a.id = account
     GROUP BY o
     UNION ALL SELECT o, '' FROM unnest(p_sets) WITH ORDINALITY s(id, o) WHERE id IS NULL) q;

  w_new := array_fill(false, ARRAY[n]); a_charged := array_fill(0::bigint, ARRAY[coalesce(cardinality(a_id), 0)]);
  FOR i IN 1..n LOOP
    IF replayed[i] THEN
      IF field[i] <> '' THEN status[i] := 7; END IF;
      CONTINUE;
    END IF;
    IF v_lapsed[p_holder_of[i]] THEN status[i] := 8; CONTINUE; END IF;
    IF p_sets[p_agent_of[i]] IS NULL THEN status[i] := 6; CONTINUE; END IF;
    v_lim := string_to_array(v_lims[p_agent_of[i]], ',')::int[];
    v_full := (p_input_cost[i] + p_fits[i] * p_output_rate[i] + 999999) / 1000000 + p_flat[i];
    v_least := (p_input_cost[i] + p_min[i] * p_output_rate[i] + 999999) / 1000000 + p_flat[i];
    v_headroom := NULL; v_worst := NULL; v_unheld := NULL; v_spent := NULL; v_stopped := NULL;
    FOREACH j IN ARRAY v_lim LOOP
      IF a_disabled[j] THEN v_stopped := j; END IF;
      v_free := a_settled[j] - a_held[j] - a_floor[j];
      IF v_headroom IS NULL OR v_free < v_headroom THEN v_headroom := v_free; v_worst := j; END IF;
      v_free := a_settled[j] - a_charged[j] - a_floor[j];
      IF v_unheld IS NULL OR v_free < v_unheld THEN v_unheld := v_free; v_spent := j; END IF;
    END LOOP;
    output_tokens[i] := 0; ceiling[i] := 0;
    IF p_fits[i] < p_min[i] THEN
      status[i] := 9;  -- whatever there is: the same request is never granted
    ELSIF v_stopped IS NOT NULL THEN
      status[i] := 4; v_worst := v_stopped;
    ELSIF v_full <= v_headroom THEN
      status[i] := 1; output_tokens[i] := p_fits[i]; ceiling[i] := v_full;
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
      IF p_holders[p_holder_of[i]] = '' THEN  -- charged in this very commit: what it takes is spent, and no longer in flight
        FOREACH j IN ARRAY v_lim LOOP
          a_charged[j] := a_charged[j] + ceiling[i];
          a_disabled[j] := a_disabled[j] OR (a_auto[j] AND a_settled[j] - a_charged[j] <= a_floor[j]);
        END LOOP;
      END IF;
    ELSIF status[i] = 9 THEN
      short[i] := v_least - p_cost_max[i];
    ELSE
      blocker[i] := CASE WHEN a_budget[v_worst] = '' THEN 'wallet' ELSE a_budget[v_worst] END;
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

  INSERT INTO holds (organization_id, request_id, agent_id, api_key_id, end_user, holder_id, routes, price_ids, input_tokens_max, output_wanted,
                     output_min, choices, cost_max_micros, status, output_tokens, ceiling_micros, limit_set, blocker, target_id, short_micros, held_at)
    SELECT p_org, p_request[o], p_agents[p_agent_of[o]], p_api_key[o], p_end_user[o], p_holders[p_holder_of[o]], p_routes[o],
           string_to_array(p_prices[o], ','), p_input[o], p_wanted[o], p_min[o], p_choices[o], p_cost_max[o], status[o], output_tokens[o], ceiling[o],
           CASE WHEN status[o] = 1 THEN p_sets[p_agent_of[o]] ELSE 0 END, blocker[o], target[o], short[o], p_at
      FROM generate_series(1, n) o WHERE w_new[o];
  INSERT INTO open_holds (organization_id, request_id, holder_id, held_at)
    SELECT p_org, p_request[o], p_holders[p_holder_of[o]], p_at FROM generate_series(1, n) o WHERE w_new[o] AND status[o] = 1;
  PERFORM move_checkpoints(array_agg(a_id[o]), array_agg(0::bigint), array_agg(a_held[o] - c.held_micros), p_at, last_seq(p_org))
    FROM generate_series(1, cardinality(a_id)) o
    CROSS JOIN LATERAL (SELECT held_micros FROM checkpoints x WHERE x.account_id = a_id[o] ORDER BY x.at DESC, x.step DESC LIMIT 1) c
   WHERE a_changed[o] HAVING count(*) > 0;
  PERFORM disable_budgets(p_org, w_disable, p_at);
  PERFORM append_audit(p_org, p_at, array_agg(p_agents[p_agent_of[o]]), array_agg('hold.refused'::text), array_agg(p_request[o]),
      array_agg('{"account":' || to_json(blocker[o]) || ',"short_micros":' || short[o] || ',"status":' || status[o] || '}'))
    FROM generate_series(1, n) o WHERE w_new[o] AND status[o] <> 1 HAVING count(*) > 0;
END $$;

-- Stop the targets of budgets that were exceeded; the caller holds the lock.
CREATE FUNCTION disable_budgets(p_org text, p_budgets text[], p_at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE v_ids text[];
BEGIN
  SELECT array_agg(id ORDER BY id) INTO v_ids
    FROM (SELECT DISTINCT unnest(p_budgets) AS id) b CROSS JOIN LATERAL rule_of(b.id) r WHERE NOT r.disabled;
  IF v_ids IS NULL THEN RETURN; END IF;
  INSERT INTO budget_versions (budget_id, version, limit_micros, auto_disable, disabled, request_id, actor, recorded_at)
    SELECT v.budget_id, v.version + 1, v.limit_micros, v.auto_disable, true, '', 'service:ledger', p_at
      FROM unnest(v_ids) b(id)
      CROSS JOIN LATERAL (SELECT * FROM budget_versions z WHERE z.budget_id = b.id ORDER BY z.version DESC LIMIT 1) v;
  PERFORM restate_budget(p_org, id, p_at) FROM unnest(v_ids) id;
  PERFORM append_audit(p_org, p_at, array_agg('service:ledger'::text), array_agg('budget.disabled'::text), v_ids, array_agg('{}'::text))
    FROM unnest(v_ids);
  PERFORM emit_events(p_org, p_at, array_agg('budget.disabled'::text), v_ids,
      array_agg('{"target_id":' || to_json((SELECT target_id FROM budgets WHERE id = v)) || '}')) FROM unnest(v_ids) v;
END $$;

-- Let a budget's accounts that may still move know its newest version; the caller holds the lock.
CREATE FUNCTION restate_budget(p_org text, p_budget text, p_at timestamptz) RETURNS void LANGUAGE sql AS $$
  INSERT INTO checkpoints (account_id, at, step, transfer_seq, settled_micros, held_micros, floor_micros, disabled, auto_disable)
    SELECT a.id, p_at, CASE WHEN c.at = p_at THEN c.step + 1 ELSE 0 END, last_seq(p_org), c.settled_micros, c.held_micros, r.floor, r.disabled, r.auto_disable
      FROM accounts a
      CROSS JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = a.id ORDER BY x.at DESC, x.step DESC LIMIT 1) c
      CROSS JOIN rule_of(p_budget) r
     WHERE a.organization_id = p_org AND a.kind = 'budget' AND a.budget_id = p_budget
$$;
