-- The other ends of a hold: void (nothing went upstream), uncertain (the holder lapsed), resolved (somebody decided).

-- Status of an item: 1 voided, 2 it was settled, 3 it was resolved by hand, 4 it is another agent's. A key that was never placed is closed for ever.
CREATE FUNCTION void_holds(
  p_org text, p_request text[], p_agent text[], p_reason text[], OUT status smallint[], OUT replayed boolean[]
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE v_at timestamptz; v_phase text; v_limits bigint[]; h holds; i int;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  status := array_fill(1::smallint, ARRAY[cardinality(p_request)]);
  replayed := array_fill(false, ARRAY[cardinality(p_request)]);
  FOR i IN 1..cardinality(p_request) LOOP
    SELECT * INTO h FROM holds WHERE organization_id = p_org AND request_id = p_request[i];
    IF NOT FOUND THEN
      INSERT INTO holds (organization_id, request_id, agent_id, api_key_id, end_user, holder_id, routes, price_ids, input_tokens_max, output_wanted,
                         output_min, choices, cost_max_micros, status, output_tokens, ceiling_micros, limit_set, blocker, target_id, short_micros, held_at)
        VALUES (p_org, p_request[i], p_agent[i], '', '', '', '', '{}', 0, 0, 0, 0, 0, 5, 0, 0, 0, '', '', 0, v_at);
      CONTINUE;
    END IF;
    IF h.agent_id <> p_agent[i] THEN status[i] := 4; CONTINUE; END IF;
    v_phase := end_of(p_org, p_request[i]);
    IF h.status <> 1 OR v_phase = 'voided' THEN replayed[i] := true; CONTINUE; END IF;
    IF v_phase = 'settled' THEN status[i] := 2; CONTINUE; END IF;
    IF v_phase = 'resolved' THEN status[i] := 3; CONTINUE; END IF;
    v_limits := limits_of(p_org, p_request[i], h.limit_set);
    PERFORM ensure_checkpoints(p_org, v_limits, v_at);
    INSERT INTO outcomes (organization_id, request_id, phase, charged_micros, reason, decided_at)
      VALUES (p_org, p_request[i], 'voided', 0, p_reason[i], v_at);
    DELETE FROM open_holds WHERE organization_id = p_org AND request_id = p_request[i];
    IF v_phase = 'uncertain' THEN
      PERFORM give_back(p_org, p_request[i], 'release', h.ceiling_micros, v_limits[2:], 'service:gateway', p_reason[i], v_at);
    ELSE
      PERFORM release_held(p_org, v_limits, h.ceiling_micros, v_at);
    END IF;
    PERFORM append_audit(p_org, v_at, ARRAY[h.agent_id], ARRAY['hold.voided'], ARRAY[p_request[i]],
      ARRAY['{"reason":' || to_json(p_reason[i]) || '}']);
  END LOOP;
END $$;

-- The last word on a hold: settled, voided or resolved if there is one, else uncertain; NULL while it is open.
CREATE FUNCTION end_of(p_org text, p_request text) RETURNS text LANGUAGE plpgsql SET enable_nestloop = on SET enable_seqscan = off AS $$
BEGIN
  IF EXISTS (SELECT 1 FROM usage u WHERE u.organization_id || '' = p_org AND u.request_id = p_request) THEN RETURN 'settled'; END IF;
  RETURN (SELECT phase FROM outcomes WHERE organization_id = p_org AND request_id = p_request ORDER BY phase = 'uncertain' LIMIT 1);
END $$;

-- Return credits from suspense to the wallet and its budgets; the caller holds the lock.
CREATE FUNCTION give_back(
  p_org text, p_key text, p_phase text, p_amount bigint, p_limits bigint[], p_actor text, p_reason text, p_at timestamptz
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_amount > 0 THEN
    PERFORM post_transfer(p_org, p_key, p_phase, 'release', account_of(p_org, 'suspense'), account_of(p_org, 'wallet'), p_amount,
                          p_limits, (CASE WHEN cardinality(p_limits) = 0 THEN 0 ELSE 1 END)::smallint, p_actor, p_reason, p_at);
  END IF;
END $$;

-- Holders without a beat for too long lapse; returns the organizations that have open holds of a lapsed holder.
CREATE FUNCTION lapse_holders(p_lease_ms int) RETURNS SETOF text LANGUAGE sql AS $$
  UPDATE leases SET lapsed_at = clock_timestamp()
   WHERE lapsed_at IS NULL AND holder_id <> '' AND beat_at < clock_timestamp() - p_lease_ms * interval '1 millisecond';
  SELECT DISTINCT o.organization_id FROM open_holds o JOIN leases l USING (holder_id) WHERE l.lapsed_at IS NOT NULL LIMIT 1000;
$$;

-- Charge the ceilings of lapsed holders' holds into suspense and list them; at most 500 a call. Returns how many.
CREATE FUNCTION mark_uncertain(p_org text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v_limits bigint[]; v_ids text[] := '{}'; v_details text[] := '{}'; v_count int := 0; h holds;
        a_id bigint[] := '{}'; a_was bigint[];
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  FOR h IN
    SELECT x.* FROM open_holds o JOIN leases l USING (holder_id) JOIN holds x USING (organization_id, request_id)
     WHERE o.organization_id = p_org AND l.lapsed_at IS NOT NULL ORDER BY o.held_at, o.request_id LIMIT 500
  LOOP
    v_count := v_count + 1;
    IF end_of(p_org, h.request_id) IS NOT NULL THEN  -- the list is derived: it may be behind
      DELETE FROM open_holds WHERE organization_id = p_org AND request_id = h.request_id;
      CONTINUE;
    END IF;
    v_limits := limits_of(p_org, h.request_id, h.limit_set);
    SELECT array_agg(DISTINCT x) INTO a_id FROM unnest(a_id || v_limits) x;
    v_ids := v_ids || h.request_id;
  END LOOP;
  IF cardinality(v_ids) = 0 THEN RETURN v_count; END IF;
  PERFORM ensure_checkpoints(p_org, a_id, v_at);
  SELECT array_agg(b.settled ORDER BY o) INTO a_was FROM unnest(a_id) WITH ORDINALITY t(id, o) CROSS JOIN LATERAL balance_of(t.id) b;
  FOR h IN SELECT x.* FROM unnest(v_ids) WITH ORDINALITY t(id, o) JOIN holds x ON x.organization_id = p_org AND x.request_id = t.id ORDER BY t.o LOOP
    INSERT INTO outcomes (organization_id, request_id, phase, charged_micros, reason, decided_at)
      VALUES (p_org, h.request_id, 'uncertain', h.ceiling_micros, 'holder lapsed', v_at);
    DELETE FROM open_holds WHERE organization_id = p_org AND request_id = h.request_id;
    v_limits := limits_of(p_org, h.request_id, h.limit_set);
    PERFORM release_held(p_org, v_limits, h.ceiling_micros, v_at);
    IF h.ceiling_micros > 0 THEN
      PERFORM post_transfer(p_org, h.request_id, 'suspend', 'suspend', v_limits[1], account_of(p_org, 'suspense'), h.ceiling_micros,
                            v_limits[2:], (CASE WHEN cardinality(v_limits) = 1 THEN 0 ELSE -1 END)::smallint, 'service:ledger', 'holder lapsed', v_at);
    END IF;
    v_details := v_details || ('{"agent_id":' || to_json(h.agent_id) || ',"ceiling_micros":' || h.ceiling_micros || '}');
  END LOOP;
  PERFORM append_audit(p_org, v_at, array_fill('service:ledger'::text, ARRAY[cardinality(v_ids)]),
                       array_fill('hold.uncertain'::text, ARRAY[cardinality(v_ids)]), v_ids, v_details);
  PERFORM emit_events(p_org, v_at, array_fill('hold.uncertain'::text, ARRAY[cardinality(v_ids)]), v_ids, v_details);
  PERFORM cross_thresholds(p_org, array_agg(t.id), array_agg(c.settled_micros), array_agg(t.was - c.settled_micros), array_agg(c.floor_micros),
                           array_agg(c.auto_disable), array_agg(c.disabled), v_at)
    FROM unnest(a_id, a_was) t(id, was)
    CROSS JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = t.id ORDER BY x.at DESC, x.step DESC LIMIT 1) c;
  RETURN v_count;
END $$;

-- Make the worklist of open holds anew from the facts. Returns how many were missing.
CREATE FUNCTION rebuild_open_holds(p_org text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_count int;
BEGIN
  PERFORM lock_organization(p_org);
  DELETE FROM open_holds o WHERE o.organization_id = p_org AND end_of(p_org, o.request_id) IS NOT NULL;
  INSERT INTO open_holds (organization_id, request_id, holder_id, held_at)
    SELECT p_org, h.request_id, h.holder_id, h.held_at FROM holds h
     WHERE h.organization_id = p_org AND h.status = 1
       AND NOT EXISTS (SELECT 1 FROM usage u WHERE u.organization_id = p_org AND u.request_id = h.request_id)
       AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.organization_id = p_org AND o.request_id = h.request_id)
  ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END $$;

-- Decide an uncertain hold. Status: 1 done, 2 no such uncertain hold, 3 decided already, 4 the amount is above the ceiling,
-- 5 the key was used for another resolution (`field` names what differs).
CREATE FUNCTION resolve_hold(
  p_org text, p_key text, p_request text, p_actual bigint /* NULL: the ceiling */, p_actor text, p_reason text,
  OUT status smallint, OUT replayed boolean, OUT field text
) LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v_limits bigint[]; v_charge bigint; h holds; o outcomes;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  replayed := false; field := '';
  SELECT * INTO o FROM outcomes WHERE organization_id = p_org AND phase = 'resolved' AND resolution_key = p_key;
  IF FOUND THEN
    field := CASE WHEN o.request_id <> p_request THEN 'hold_request_id'
                  WHEN o.asked_micros IS DISTINCT FROM p_actual THEN 'actual_micros'
                  WHEN o.reason <> p_reason THEN 'reason' ELSE '' END;
    replayed := field = '';
    status := CASE WHEN replayed THEN 1 ELSE 5 END;
    RETURN;
  END IF;
  SELECT * INTO h FROM holds WHERE organization_id = p_org AND request_id = p_request AND holds.status = 1;
  IF NOT FOUND OR NOT EXISTS (SELECT 1 FROM outcomes WHERE organization_id = p_org AND request_id = p_request AND phase = 'uncertain') THEN
    status := 2; RETURN;
  END IF;
  IF end_of(p_org, p_request) <> 'uncertain' THEN status := 3; RETURN; END IF;
  v_charge := coalesce(p_actual, h.ceiling_micros);
  IF v_charge > h.ceiling_micros THEN status := 4; RETURN; END IF;
  status := 1;
  INSERT INTO outcomes (organization_id, request_id, phase, charged_micros, reason, resolution_key, asked_micros, decided_at)
    VALUES (p_org, p_request, 'resolved', v_charge, p_reason, p_key, p_actual, v_at);
  v_limits := limits_of(p_org, p_request, h.limit_set);
  IF v_charge > 0 THEN
    PERFORM post_transfer(p_org, p_request, 'resolve', 'resolve', account_of(p_org, 'suspense'), account_of(p_org, 'revenue'),
                          v_charge, '{}', 0::smallint, p_actor, p_reason, v_at);
  END IF;
  PERFORM give_back(p_org, p_request, 'release', h.ceiling_micros - v_charge, v_limits[2:], p_actor, p_reason, v_at);
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['hold.resolved'], ARRAY[p_request],
    ARRAY['{"charged_micros":' || v_charge || ',"reason":' || to_json(p_reason) || '}']);
END $$;

-- The ledger's own holder, of charges in one phase: it never lapses.
INSERT INTO leases (holder_id) VALUES ('');
