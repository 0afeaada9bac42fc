-- Budgets open under the organization's lock with what their window has spent and holds already.

-- Count what a budget that is about to be made would open with, without the lock: the window's start, the last usage row
-- that is in the count, and the count.
CREATE FUNCTION count_budget(p_org text, p_target text, p_period text, OUT start timestamptz, OUT counted bigint, OUT known bigint)
LANGUAGE plpgsql AS $$
BEGIN
  start := (window_of(p_org, p_period, ledger_time(p_org))).starts;
  counted := last_usage(p_org);
  known := count_spent(p_org, p_target, start, usage_before(p_org, start), counted);
END $$;

-- Status: 1 made, 2 the key was used for another budget (`field` names what differs), 3 the target has 100 budgets.
CREATE FUNCTION create_budget(
  p_org text, p_id text, p_key text, p_target text, p_period text, p_limit bigint, p_auto boolean, p_actor text,
  p_start timestamptz, p_counted bigint, p_known bigint /* what count_budget said */,
  OUT status smallint, OUT budget text, OUT field text
) LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v_start timestamptz; v_same boolean; g budgets; v budget_versions;
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
  IF (SELECT count(*) FROM budgets b WHERE b.organization_id = p_org AND b.target_id = p_target) >= 100 THEN status := 3; RETURN; END IF;
  budget := p_id;
  INSERT INTO budgets (id, organization_id, target_id, period, ordinal, request_id, created_at)
    SELECT p_id, p_org, p_target, p_period, coalesce(max(ordinal), 0) + 1, p_key, v_at FROM budgets WHERE organization_id = p_org;
  INSERT INTO budget_versions (budget_id, version, limit_micros, auto_disable, disabled, request_id, actor, recorded_at)
    VALUES (p_id, 1, p_limit, p_auto, false, p_key, p_actor, v_at);
  -- The worklist is derived: were a part of it lost, this budget would miss holds in flight for ever.
  IF (SELECT b.held FROM balance_of(account_of(p_org, 'wallet')) b) <>
     (SELECT coalesce(sum(h.ceiling_micros), 0) FROM open_holds o JOIN holds h USING (organization_id, request_id)
       WHERE o.organization_id = p_org) THEN
    PERFORM rebuild_open_holds(p_org);
  END IF;
  v_start := (window_of(p_org, p_period, v_at)).starts;
  v_same := v_start = p_start;  -- midnight may have passed since the count
  PERFORM open_window(p_org, p_id, p_target, v_start, v_at, true, CASE WHEN v_same THEN p_counted ELSE 0 END, CASE WHEN v_same THEN p_known ELSE 0 END);
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
  PERFORM restate_budget(p_org, p_budget, v_at);
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['budget.changed'], ARRAY[p_budget],
    ARRAY['{"auto_disable":' || coalesce(p_auto, v.auto_disable) || ',"disabled":' || coalesce(p_disabled, v.disabled)
          || ',"limit_micros":' || coalesce(p_limit, v.limit_micros) || '}']);
  IF v.disabled AND NOT coalesce(p_disabled, true) THEN
    PERFORM emit_events(p_org, v_at, ARRAY['budget.enabled'], ARRAY[p_budget],
      ARRAY['{"target_id":' || to_json((SELECT target_id FROM budgets WHERE id = p_budget)) || '}']);
  END IF;
END $$;
