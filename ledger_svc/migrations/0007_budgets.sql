-- Budgets open under the organization's lock with what their window has spent and holds already.

-- Status: 1 made, 2 the key was used for another budget (`field` names what differs).
CREATE FUNCTION create_budget(
  p_org text, p_id text, p_key text, p_target text, p_period text, p_limit bigint, p_auto boolean, p_actor text,
  OUT status smallint, OUT budget text, OUT field text
) LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v_start timestamptz; v_account bigint; v_spent bigint; v_held bigint; g budgets; v budget_versions;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  status := 1; field := '';
  SELECT * INTO g FROM budgets b WHERE b.organization_id = p_org AND b.request_id = p_key;
  IF FOUND THEN
    SELECT * INTO v FROM budget_versions z WHERE z.budget_id = g.id AND z.version = 1;
    budget := g.id;
    field := CASE WHEN g.target_id <> p_target THEN 'target_id' WHEN g.period <> p_period THEN 'period'
                  WHEN v.limit_micros <> p_limit THEN 'limit_micros' WHEN v.auto_disable <> p_auto THEN 'auto_disable' ELSE '' END;
    IF field <> '' THEN status := 2; END IF;
    RETURN;
  END IF;
  budget := p_id;
  v_start := window_start(p_period, v_at);
  INSERT INTO budgets (id, organization_id, target_id, period, request_id, created_at) VALUES (p_id, p_org, p_target, p_period, p_key, v_at);
  INSERT INTO budget_versions (budget_id, version, limit_micros, auto_disable, disabled, request_id, actor, recorded_at)
    VALUES (p_id, 1, p_limit, p_auto, false, p_key, p_actor, v_at);
  -- A hold belongs to the window in which it was placed, so what it cost counts there.
  SELECT coalesce(sum(o.charged_micros), 0) INTO v_spent
    FROM holds h JOIN LATERAL (SELECT charged_micros FROM outcomes x WHERE x.organization_id = p_org AND x.request_id = h.request_id
                                ORDER BY x.phase = 'uncertain' LIMIT 1) o ON true
   WHERE h.organization_id = p_org AND h.status = 1 AND p_target = ANY (h.path) AND h.held_at >= v_start;
  INSERT INTO accounts (organization_id, kind, budget_id, window_start, opening_micros, opened_at)
    VALUES (p_org, 'budget', p_id, v_start, -v_spent, v_at) RETURNING id INTO v_account;
  -- Open holds, and uncertain ones that may yet give some back, count against it from now on.
  INSERT INTO hold_links (organization_id, request_id, account_id)
    SELECT p_org, h.request_id, v_account FROM holds h
     WHERE h.organization_id = p_org AND h.status = 1 AND p_target = ANY (h.path) AND h.held_at >= v_start
       AND NOT EXISTS (SELECT 1 FROM outcomes x WHERE x.organization_id = p_org AND x.request_id = h.request_id AND x.phase <> 'uncertain');
  SELECT coalesce(sum(h.ceiling_micros), 0) INTO v_held
    FROM open_holds o JOIN holds h USING (organization_id, request_id)
   WHERE o.organization_id = p_org AND p_target = ANY (h.path) AND h.held_at >= v_start;
  INSERT INTO checkpoints (account_id, version, settled_micros, held_micros) VALUES (v_account, 1, -v_spent, v_held);
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['budget.created'], ARRAY[p_id],
    ARRAY['{"auto_disable":' || p_auto || ',"limit_micros":' || p_limit || ',"period":' || to_json(p_period) || ',"target_id":' || to_json(p_target) || '}']);
END $$;

-- Add a version. NULL leaves a value as it is. Status: 1 changed or replayed, 2 the key was used for another change (`field`
-- names what differs).
CREATE FUNCTION change_budget(
  p_org text, p_budget text, p_key text, p_limit bigint, p_auto boolean, p_disabled boolean, p_actor text,
  OUT status smallint, OUT field text
) LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v budget_versions; done budget_versions;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  status := 1; field := '';
  SELECT * INTO done FROM budget_versions z WHERE z.budget_id = p_budget AND z.request_id = p_key AND z.version > 1;
  IF FOUND THEN
    field := CASE WHEN done.asked_limit_micros IS DISTINCT FROM p_limit THEN 'limit_micros'
                  WHEN done.asked_auto_disable IS DISTINCT FROM p_auto THEN 'auto_disable'
                  WHEN done.asked_disabled IS DISTINCT FROM p_disabled THEN 'disabled' ELSE '' END;
    IF field <> '' THEN status := 2; END IF;
    RETURN;
  END IF;
  SELECT * INTO STRICT v FROM budget_versions z WHERE z.budget_id = p_budget ORDER BY z.version DESC LIMIT 1;
  INSERT INTO budget_versions (budget_id, version, limit_micros, auto_disable, disabled, request_id, actor, recorded_at,
                               asked_limit_micros, asked_auto_disable, asked_disabled)
    VALUES (p_budget, v.version + 1, coalesce(p_limit, v.limit_micros), coalesce(p_auto, v.auto_disable),
            coalesce(p_disabled, v.disabled), p_key, p_actor, v_at, p_limit, p_auto, p_disabled);
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['budget.changed'], ARRAY[p_budget],
    ARRAY['{"auto_disable":' || coalesce(p_auto, v.auto_disable) || ',"disabled":' || coalesce(p_disabled, v.disabled)
          || ',"limit_micros":' || coalesce(p_limit, v.limit_micros) || '}']);
END $$;
