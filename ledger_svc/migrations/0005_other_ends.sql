-- The other ends of a hold: void (nothing went upstream), uncertain (the holder lapsed), resolved (somebody decided).

-- Status of an item: 1 voided, 2 it was settled, 3 it was resolved by hand. A key that was never placed is closed for ever.
CREATE FUNCTION void_holds(
  p_org text, p_request text[], p_agent text[], p_reason text[], OUT status smallint[], OUT replayed boolean[]
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE v_at timestamptz; v_phase text; v_own bigint[]; h holds; i int;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  status := array_fill(1::smallint, ARRAY[cardinality(p_request)]);
  replayed := array_fill(false, ARRAY[cardinality(p_request)]);
  FOR i IN 1..cardinality(p_request) LOOP
    SELECT * INTO h FROM holds WHERE organization_id = p_org AND request_id = p_request[i];
    IF NOT FOUND THEN
      INSERT INTO holds (organization_id, request_id, agent_id, api_key_id, end_user, holder_id, path, routes, price_ids, input_tokens_max, output_wanted,
                         output_min, choices, status, output_tokens, ceiling_micros, limits, blocker, target_id, short_micros, held_at)
        VALUES (p_org, p_request[i], p_agent[i], '', '', '', '{}', '', '{}', 0, 0, 0, 0, 5, 0, 0, '{}', '', '', 0, v_at);
      CONTINUE;
    END IF;
    -- The last word: settled, voided or resolved if there is one, else uncertain.
    SELECT phase INTO v_phase FROM outcomes WHERE organization_id = p_org AND request_id = p_request[i]
      ORDER BY phase = 'uncertain' LIMIT 1;
    IF h.status <> 1 OR v_phase = 'voided' THEN replayed[i] := true; CONTINUE; END IF;
    IF v_phase = 'settled' THEN status[i] := 2; CONTINUE; END IF;
    IF v_phase = 'resolved' THEN status[i] := 3; CONTINUE; END IF;
    INSERT INTO outcomes (organization_id, request_id, phase, charged_micros, reason, decided_at)
      VALUES (p_org, p_request[i], 'voided', 0, p_reason[i], v_at);
    DELETE FROM open_holds WHERE organization_id = p_org AND request_id = p_request[i];
    v_own := budget_limits(p_org, p_request[i], h.limits);
    IF v_phase = 'uncertain' THEN
      PERFORM give_back(p_org, p_request[i], 'release', h.ceiling_micros, v_own, 'service:gateway', p_reason[i], v_at);
    ELSE
      PERFORM release_held(h.limits[1:1] || v_own, h.ceiling_micros);
    END IF;
    PERFORM append_audit(p_org, v_at, ARRAY[h.agent_id], ARRAY['hold.voided'], ARRAY[p_request[i]],
      ARRAY['{"reason":' || to_json(p_reason[i]) || '}']);
  END LOOP;
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
   WHERE lapsed_at IS NULL AND beat_at < clock_timestamp() - p_lease_ms * interval '1 millisecond';
  SELECT DISTINCT o.organization_id FROM open_holds o JOIN leases l USING (holder_id) WHERE l.lapsed_at IS NOT NULL LIMIT 1000;
$$;

-- Charge the ceilings of lapsed holders' holds into suspense and list them; at most 500 a call. Returns how many.
CREATE FUNCTION mark_uncertain(p_org text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v_own bigint[]; v_count int := 0; h holds;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  FOR h IN
    SELECT x.* FROM open_holds o JOIN leases l USING (holder_id) JOIN holds x USING (organization_id, request_id)
     WHERE o.organization_id = p_org AND l.lapsed_at IS NOT NULL ORDER BY o.held_at LIMIT 500
  LOOP
    INSERT INTO outcomes (organization_id, request_id, phase, charged_micros, reason, decided_at)
      VALUES (p_org, h.request_id, 'uncertain', h.ceiling_micros, 'holder lapsed', v_at);
    DELETE FROM open_holds WHERE organization_id = p_org AND request_id = h.request_id;
    v_own := budget_limits(p_org, h.request_id, h.limits);
    PERFORM release_held(h.limits[1:1] || v_own, h.ceiling_micros);
    IF h.ceiling_micros > 0 THEN
      PERFORM post_transfer(p_org, h.request_id, 'suspend', 'suspend', account_of(p_org, 'wallet'), account_of(p_org, 'suspense'),
                            h.ceiling_micros, v_own, (CASE WHEN cardinality(v_own) = 0 THEN 0 ELSE -1 END)::smallint,
                            'service:ledger', 'holder lapsed', v_at);
    END IF;
    PERFORM append_audit(p_org, v_at, ARRAY['service:ledger'], ARRAY['hold.uncertain'], ARRAY[h.request_id],
      ARRAY['{"agent_id":' || to_json(h.agent_id) || ',"ceiling_micros":' || h.ceiling_micros || '}']);
    v_count := v_count + 1;
  END LOOP;
  RETURN v_count;
END $$;

-- Decide an uncertain hold. Status: 1 done, 2 no such uncertain hold, 3 decided already, 4 the amount is above the ceiling,
-- 5 the key was used for another resolution (`field` names what differs).
CREATE FUNCTION resolve_hold(
  p_org text, p_key text, p_request text, p_actual bigint /* NULL: the ceiling */, p_actor text, p_reason text,
  OUT status smallint, OUT replayed boolean, OUT field text
) LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v_own bigint[]; v_charge bigint; h holds; o outcomes;
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
  IF EXISTS (SELECT 1 FROM outcomes WHERE organization_id = p_org AND request_id = p_request AND phase <> 'uncertain') THEN
    status := 3; RETURN;
  END IF;
  v_charge := coalesce(p_actual, h.ceiling_micros);
  IF v_charge > h.ceiling_micros THEN status := 4; RETURN; END IF;
  status := 1;
  INSERT INTO outcomes (organization_id, request_id, phase, charged_micros, reason, resolution_key, asked_micros, decided_at)
    VALUES (p_org, p_request, 'resolved', v_charge, p_reason, p_key, p_actual, v_at);
  v_own := budget_limits(p_org, p_request, h.limits);
  IF v_charge > 0 THEN
    PERFORM post_transfer(p_org, p_request, 'resolve', 'resolve', account_of(p_org, 'suspense'), account_of(p_org, 'revenue'),
                          v_charge, '{}', 0::smallint, p_actor, p_reason, v_at);
  END IF;
  PERFORM give_back(p_org, p_request, 'release', h.ceiling_micros - v_charge, v_own, p_actor, p_reason, v_at);
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['hold.resolved'], ARRAY[p_request],
    ARRAY['{"charged_micros":' || v_charge || ',"reason":' || to_json(p_reason) || '}']);
END $$;
