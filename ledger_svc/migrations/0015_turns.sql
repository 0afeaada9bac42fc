-- Batches in which nothing is refused, clamped, repeated or late are decided by a ledger process from what it remembers of
-- an organization's books, and written in one call. What it remembers holds as long as the organization's turn is the one
-- that it knows: whoever writes the books begins another.

-- No turn comes twice, so that a database that was put back, or lost its last commits, is not taken for what it was.
CREATE TABLE turns (
  organization_id text PRIMARY KEY,
  turn            uuid NOT NULL
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, UPDATE ON turns TO mandate_ledger;

CREATE FUNCTION begin_turn(p_org text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO turns (organization_id, turn) VALUES (p_org, gen_random_uuid())
  ON CONFLICT (organization_id) DO UPDATE SET turn = excluded.turn;
$$;

CREATE OR REPLACE FUNCTION lock_organization(p_org text) RETURNS void LANGUAGE sql AS $$
  SELECT pg_advisory_xact_lock(7101, hashtext(p_org));
  SELECT begin_turn(p_org);
$$;

-- Paths are recorded without the lock, also by processes that know nothing of turns.
CREATE FUNCTION begin_turn_of_node() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM begin_turn(NEW.organization_id);
  RETURN NULL;
END $$;
CREATE TRIGGER nodes_begin_a_turn AFTER INSERT ON nodes FOR EACH ROW EXECUTE FUNCTION begin_turn_of_node();

-- All that a batch needs to know, as of one moment: STABLE functions share their caller's snapshot. `turn` is NULL where
-- the books were never written. An agent without accounts that are of now has no set, and a hold that is not plainly open,
-- or counts against accounts beyond its set, is left out.
CREATE FUNCTION read_books(
  p_org text, p_agents text[], p_versions bigint[], p_requests text[],
  OUT turn uuid, OUT now timestamptz, OUT told_at timestamptz, OUT due_at timestamptz, OUT wallet bigint, OUT revenue bigint,
  OUT transfer_seq bigint, OUT usage_seq bigint, OUT audit_seq bigint, OUT audit_hash bytea,
  OUT agent_sets bigint[],
  OUT h_request text[], OUT h_agent text[], OUT h_key text[], OUT h_user text[], OUT h_ceiling bigint[], OUT h_set bigint[], OUT h_held_at timestamptz[],
  OUT s_id bigint[], OUT s_path text[], OUT s_accounts text[], OUT s_until timestamptz[],
  OUT a_id bigint[], OUT a_settled bigint[], OUT a_held bigint[], OUT a_floor bigint[], OUT a_disabled boolean[], OUT a_auto boolean[]
) LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE v_budgets int; v_rules int;
BEGIN
  SELECT t.turn INTO turn FROM turns t WHERE t.organization_id = p_org;
  SELECT id INTO wallet FROM accounts WHERE organization_id = p_org AND kind = 'wallet' AND budget_id IS NULL AND window_start IS NULL;
  SELECT id INTO revenue FROM accounts WHERE organization_id = p_org AND kind = 'revenue' AND budget_id IS NULL AND window_start IS NULL;
  SELECT a.seq, a.hash, a.recorded_at INTO audit_seq, audit_hash, told_at FROM audit a WHERE a.organization_id = p_org ORDER BY a.seq DESC LIMIT 1;
  SELECT greatest(told_at, (SELECT c.at FROM checkpoints c WHERE c.account_id = wallet ORDER BY c.at DESC, c.step DESC LIMIT 1)) INTO told_at;
  SELECT g.due_at INTO due_at FROM open_grants g WHERE g.organization_id = p_org AND g.due_at < 'infinity' ORDER BY g.due_at LIMIT 1;
  transfer_seq := last_seq(p_org);
  usage_seq := last_usage(p_org);
  now := clock_timestamp();

  SELECT coalesce((SELECT b.ordinal FROM budgets b WHERE b.organization_id = p_org ORDER BY b.ordinal DESC LIMIT 1), 0),
         coalesce((SELECT r.version FROM rules r WHERE r.organization_id = p_org ORDER BY r.version DESC LIMIT 1), 0)
    INTO v_budgets, v_rules;
  SELECT array_agg(CASE WHEN s.path_version = t.version AND k.path_version = t.version AND s.budgets = v_budgets AND s.rules = v_rules
                         AND s.until > greatest(now, told_at) THEN s.id END ORDER BY t.o)
    INTO agent_sets
    FROM unnest(p_agents, p_versions) WITH ORDINALITY t(agent, version, o)
    LEFT JOIN LATERAL (SELECT * FROM limit_sets x WHERE x.organization_id = p_org AND x.agent_id = t.agent ORDER BY x.id DESC LIMIT 1) s ON true
    LEFT JOIN LATERAL (SELECT x.path_version FROM nodes x WHERE x.id = t.agent ORDER BY x.path_version DESC LIMIT 1) k ON true;
  SELECT array_agg(h.request_id), array_agg(h.agent_id), array_agg(h.api_key_id), array_agg(h.end_user), array_agg(h.ceiling_micros),
         array_agg(h.limit_set), array_agg(h.held_at)
    INTO h_request, h_agent, h_key, h_user, h_ceiling, h_set, h_held_at
    FROM unnest(p_requests) r(id)
    CROSS JOIN LATERAL (SELECT * FROM holds x WHERE x.organization_id = p_org AND x.request_id = r.id LIMIT 1) h
   WHERE h.status = 1
     AND EXISTS (SELECT 1 FROM open_holds x WHERE x.organization_id = p_org AND x.request_id = r.id)
     AND NOT EXISTS (SELECT 1 FROM outcomes x WHERE x.organization_id = p_org AND x.request_id = r.id)
     AND NOT EXISTS (SELECT 1 FROM hold_links x WHERE x.organization_id = p_org AND x.request_id = r.id);
  SELECT array_agg(s.id), array_agg(array_to_string(s.path, ',')), array_agg(array_to_string(s.accounts, ',')),
         array_agg(least(s.until, timestamptz '9999-01-01 00:00:00+00'))
    INTO s_id, s_path, s_accounts, s_until
    FROM (SELECT DISTINCT u.id FROM unnest(agent_sets || h_set) u(id) WHERE u.id IS NOT NULL) w
    CROSS JOIN LATERAL (SELECT * FROM limit_sets x WHERE x.id = w.id LIMIT 1) s;
  SELECT array_agg(w.id), array_agg(c.settled_micros), array_agg(c.held_micros), array_agg(c.floor_micros), array_agg(c.disabled),
         array_agg(c.auto_disable), greatest(told_at, max(c.at))
    INTO a_id, a_settled, a_held, a_floor, a_disabled, a_auto, told_at
    FROM (SELECT DISTINCT unnest(string_to_array(t.accounts, ',')::bigint[]) AS id FROM unnest(s_accounts) t(accounts)
          UNION SELECT revenue WHERE revenue IS NOT NULL) w
    CROSS JOIN LATERAL (SELECT * FROM checkpoints x WHERE x.account_id = w.id ORDER BY x.at DESC, x.step DESC LIMIT 1) c;
END $$;

CREATE TYPE plain_settlement AS (
  request text, agent text, api_key text, end_user text, ceiling bigint, path text, limits bigint, held_at timestamptz, cost bigint,
  provider text, model text, price text, input bigint, cached bigint, cache_write bigint, output bigint, reasoning bigint, estimated boolean,
  outcome text, http_status int, latency int, overhead int, first_token int, streamed boolean, source text, attempts int, dialect text,
  line text, hash bytea
);
CREATE TYPE plain_hold AS (
  request text, agent text, api_key text, end_user text, holder text, routes text, prices text, input bigint, wanted bigint, min bigint,
  choices int, cost_max bigint, fits bigint, ceiling bigint, limits bigint
);

-- Write a batch that was decided from the books as of `p_turn`: settlements, then holds, and each account that they touch
-- once. Returns the turn that this begins, and the time; NULL, and nothing is written, where somebody else has begun a turn,
-- a holder has lapsed, or the clock that the batch was decided by is more than a second off. A key that was used before, or
-- a hold that is not open, is an error that writes nothing either.
CREATE FUNCTION post_plain(
  p_org text, p_turn uuid, p_at timestamptz, p_wallet bigint, p_revenue bigint,
  p_transfer_seq bigint, p_usage_seq bigint, p_audit_seq bigint,  -- the last of each before
  p_posted bigint,  -- transfers
  a_id bigint[], a_settled bigint[], a_held bigint[], a_floor bigint[], a_disabled boolean[], a_auto boolean[],
  p_settled plain_settlement[], p_placed plain_hold[], p_holders text[],
  OUT next_turn uuid, OUT now timestamptz
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE v_count int;
BEGIN
  UPDATE turns SET turn = gen_random_uuid()
   WHERE organization_id = p_org AND turn = p_turn
     AND p_at BETWEEN clock_timestamp() - interval '1 second' AND clock_timestamp() + interval '1 second'
     AND NOT EXISTS (SELECT 1 FROM unnest(p_holders) h(id)
                      WHERE NOT EXISTS (SELECT 1 FROM leases l WHERE l.holder_id = h.id AND l.lapsed_at IS NULL))
  RETURNING turn INTO next_turn;
  IF NOT FOUND THEN RETURN; END IF;
  IF cardinality(p_settled) > 0 THEN
    WITH charged AS (
      INSERT INTO transfers (organization_id, seq, key, phase, kind, debit, credit, amount_micros, limit_set, direction, actor, posted_at)
        SELECT p_org, p_transfer_seq + row_number() OVER (), t.request, 'charge', 'charge', p_wallet, p_revenue, t.cost, t.limits,
               CASE WHEN t.limits = 0 THEN 0 ELSE -1 END, 'service:gateway', p_at
          FROM unnest(p_settled) t WHERE t.cost > 0
    ), used AS (
      INSERT INTO usage (organization_id, seq, request_id, path, agent_id, api_key_id, end_user, provider, model, price_id, input_tokens,
                         cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, charged_micros, ceiling_micros,
                         breach_micros, estimated, outcome, http_status, latency_ms, overhead_ms, first_token_ms, streamed, usage_source,
                         attempts, dialect, held_at, used_at)
        SELECT p_org, p_usage_seq + t.ordinality, t.request, string_to_array(t.path, ','), t.agent, t.api_key, t.end_user, t.provider, t.model,
               t.price, t.input, t.cached, t.cache_write, t.output, t.reasoning, t.cost, t.ceiling, 0, t.estimated, t.outcome, t.http_status,
               t.latency, t.overhead, t.first_token, t.streamed, t.source, t.attempts, t.dialect, t.held_at, p_at
          FROM unnest(p_settled) WITH ORDINALITY t
    )
    INSERT INTO audit (organization_id, seq, line, hash, recorded_at)
      SELECT p_org, p_audit_seq + t.ordinality, t.line, t.hash, p_at FROM unnest(p_settled) WITH ORDINALITY t;
    DELETE FROM open_holds WHERE ctid = ANY (ARRAY(
      SELECT x.ctid FROM unnest(p_settled) t
        CROSS JOIN LATERAL (SELECT ctid FROM open_holds y WHERE y.organization_id = p_org AND y.request_id = t.request LIMIT 1) x));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    IF v_count <> cardinality(p_settled) THEN RAISE EXCEPTION 'a hold is not open' USING ERRCODE = 'P0002'; END IF;
  END IF;
  IF cardinality(p_placed) > 0 THEN
    WITH held AS (
      INSERT INTO holds (organization_id, request_id, agent_id, api_key_id, end_user, holder_id, routes, price_ids, input_tokens_max,
                         output_wanted, output_min, choices, cost_max_micros, status, output_tokens, ceiling_micros, limit_set, blocker,
                         target_id, short_micros, held_at)
        SELECT p_org, t.request, t.agent, t.api_key, t.end_user, t.holder, t.routes, string_to_array(t.prices, ','), t.input, t.wanted, t.min,
               t.choices, t.cost_max, 1, t.fits, t.ceiling, t.limits, '', '', 0, p_at
          FROM unnest(p_placed) t
    )
    INSERT INTO open_holds (organization_id, request_id, holder_id, held_at)
      SELECT p_org, t.request, t.holder, p_at FROM unnest(p_placed) t;
  END IF;
  INSERT INTO checkpoints (account_id, at, step, transfer_seq, settled_micros, held_micros, floor_micros, disabled, auto_disable)
    SELECT id, p_at, 0, p_transfer_seq + p_posted, s, h, f, d, a
      FROM unnest(a_id, a_settled, a_held, a_floor, a_disabled, a_auto) t(id, s, h, f, d, a);
  now := clock_timestamp();
END $$;
