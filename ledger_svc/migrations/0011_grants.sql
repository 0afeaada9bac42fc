-- Credit grants are lots of promotional or prepaid credits, which may expire. The wallet stays one account, so a charge
-- knows nothing of lots: which of them it used up is settled when lots change. Such a moment is a cut. What the wallet
-- spent between two cuts burns the lots of that time, in the order of their priority, their expiry and their making;
-- bought credits come last. `ledger_svc/grants.py` says the same rule for reading.

CREATE TABLE grants (
  id              text PRIMARY KEY,
  organization_id text NOT NULL,
  request_id      text NOT NULL,
  seq             bigint NOT NULL,   -- of its transfer: the order of making
  amount_micros   bigint NOT NULL CHECK (amount_micros > 0),
  priority        smallint NOT NULL CHECK (priority BETWEEN 0 AND 100),  -- the lower burns first
  expires_at      timestamptz,
  category        text NOT NULL CHECK (category IN ('promotional', 'paid')),
  actor           text NOT NULL,
  reason          text NOT NULL,
  made_at         timestamptz NOT NULL,
  UNIQUE (organization_id, request_id)
);
CREATE INDEX grants_of_organization ON grants (organization_id, id);

CREATE TABLE grant_voids (
  organization_id text NOT NULL,
  request_id      text NOT NULL,
  grant_id        text NOT NULL UNIQUE REFERENCES grants (id),
  actor           text NOT NULL,
  reason          text NOT NULL,
  voided_at       timestamptz NOT NULL,
  PRIMARY KEY (organization_id, request_id)
);

CREATE TABLE grant_cuts (
  organization_id text NOT NULL,
  number          bigint NOT NULL,   -- gapless within the organization
  transfer_seq    bigint NOT NULL,   -- the last transfer that it looked at
  settled_micros  bigint NOT NULL,   -- the wallet after that transfer
  spent_micros    bigint NOT NULL,   -- since the cut before; below 0 where more was released than charged
  cut_at          timestamptz NOT NULL,
  PRIMARY KEY (organization_id, number)
);

-- What left a lot at a cut, and why. A lot's remainder is its amount less its burns.
CREATE TABLE grant_burns (
  organization_id text NOT NULL,
  cut             bigint NOT NULL,
  grant_id        text NOT NULL REFERENCES grants (id),
  cause           text NOT NULL CHECK (cause IN ('spent', 'expired', 'voided')),
  amount_micros   bigint NOT NULL CHECK (amount_micros > 0),
  PRIMARY KEY (organization_id, cut, grant_id, cause),
  FOREIGN KEY (organization_id, cut) REFERENCES grant_cuts (organization_id, number)
);
CREATE INDEX grant_burns_of_grant ON grant_burns (grant_id);

-- Derived (rebuild_open_grants): lots with a remainder as of the last cut. One that is due waits for holds in flight.
CREATE TABLE open_grants (
  grant_id         text PRIMARY KEY,
  organization_id  text NOT NULL,
  seq              bigint NOT NULL,
  priority         smallint NOT NULL,
  expires_at       timestamptz,
  remaining_micros bigint NOT NULL CHECK (remaining_micros >= 0),
  due_at           timestamptz NOT NULL,  -- when what remains is to be taken; infinity: never
  cause            text NOT NULL CHECK (cause IN ('expired', 'voided'))
);
CREATE INDEX open_grants_due ON open_grants (organization_id, due_at);

-- What moves a wallet without spending it: purchases, refunds, adjustments, grants, breakage.
CREATE INDEX transfers_by_hand ON transfers (organization_id, seq) WHERE phase = 'posting';

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['grants', 'grant_voids', 'grant_cuts', 'grant_burns'] LOOP
    EXECUTE format('CREATE TRIGGER %I_unchanging BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()', name, name);
    EXECUTE format('CREATE TRIGGER %I_untruncated BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name, name);
    EXECUTE format('GRANT SELECT, INSERT ON %I TO mandate_ledger', name);
  END LOOP;
END $$;
GRANT SELECT, INSERT, UPDATE, DELETE ON open_grants TO mandate_ledger;

-- The wallet, what it spent since the last cut, and that cut's number. From its balances and the few transfers by hand,
-- so that its cost does not grow with the charges in between.
CREATE FUNCTION spent_since_cut(p_org text, OUT spent bigint, OUT settled bigint, OUT held bigint, OUT cut bigint)
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE v_wallet bigint; v_moved bigint; c grant_cuts;
BEGIN
  spent := 0; settled := 0; held := 0; cut := 0;
  SELECT id INTO v_wallet FROM accounts
    WHERE organization_id = p_org AND kind = 'wallet' AND budget_id IS NULL AND window_start IS NULL;
  IF v_wallet IS NULL THEN RETURN; END IF;
  SELECT b.settled, b.held INTO settled, held FROM balance_of(v_wallet) b;
  SELECT * INTO c FROM grant_cuts WHERE organization_id = p_org ORDER BY number DESC LIMIT 1;
  IF c.number IS NULL THEN RETURN; END IF;
  SELECT coalesce(sum(CASE WHEN credit = v_wallet THEN amount_micros ELSE -amount_micros END), 0) INTO v_moved
    FROM transfers
   WHERE organization_id = p_org AND phase = 'posting' AND seq > c.transfer_seq AND v_wallet IN (debit, credit);
  spent := c.settled_micros + v_moved - settled;
  cut := c.number;
END $$;

-- Settle which lots were burned until now; the caller holds the lock. Lots never hold more than the wallet does: a refund
-- or an adjustment that took more than was bought burns them too. Returns the cut's number.
CREATE FUNCTION cut_grants(p_org text, p_at timestamptz) RETURNS bigint
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE w record; v_cut bigint;
BEGIN
  SELECT * INTO w FROM spent_since_cut(p_org);
  v_cut := w.cut + 1;
  INSERT INTO grant_cuts (organization_id, number, transfer_seq, settled_micros, spent_micros, cut_at)
    SELECT p_org, v_cut, coalesce(max(seq), 0), w.settled, w.spent, p_at FROM transfers WHERE organization_id = p_org;
  INSERT INTO grant_burns (organization_id, cut, grant_id, cause, amount_micros)
    SELECT p_org, v_cut, grant_id, 'spent', least(remaining, greatest(w.spent, total - w.settled) - before)
      FROM (SELECT grant_id, remaining_micros AS remaining,
                   sum(remaining_micros) OVER (ORDER BY priority, expires_at NULLS LAST, seq)::bigint - remaining_micros AS before,
                   sum(remaining_micros) OVER ()::bigint AS total
              FROM open_grants WHERE organization_id = p_org) lots
     WHERE greatest(w.spent, total - w.settled) > before AND remaining > 0;
  UPDATE open_grants o SET remaining_micros = o.remaining_micros - b.amount_micros
    FROM grant_burns b WHERE b.organization_id = p_org AND b.cut = v_cut AND b.grant_id = o.grant_id;
  DELETE FROM open_grants WHERE organization_id = p_org AND remaining_micros = 0;
  RETURN v_cut;
END $$;

-- Take what is due from the wallet, as far as no hold in flight counts on it: breakage never takes a wallet's settled
-- below its held. What is covered stays due. The caller holds the lock.
CREATE FUNCTION take_due_grants(p_org text, p_at timestamptz) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
  v_wallet bigint := account_of(p_org, 'wallet'); v_free bigint; v_cut bigint; v_take bigint; g record;
  v_actors text[] := '{}'; v_actions text[] := '{}'; v_subjects text[] := '{}'; v_details text[] := '{}';
BEGIN
  SELECT b.settled - b.held INTO v_free FROM balance_of(v_wallet) b;
  IF v_free <= 0 THEN RETURN; END IF;
  v_cut := cut_grants(p_org, p_at);
  FOR g IN
    SELECT o.grant_id, o.remaining_micros, o.cause, x.category, coalesce(v.actor, 'service:ledger') AS actor,
           coalesce(v.reason, 'expired') AS reason
      FROM open_grants o JOIN grants x ON x.id = o.grant_id LEFT JOIN grant_voids v ON v.grant_id = o.grant_id
     WHERE o.organization_id = p_org AND o.due_at <= p_at ORDER BY o.due_at, o.seq
  LOOP
    EXIT WHEN v_free <= 0;
    v_take := least(g.remaining_micros, v_free);
    v_free := v_free - v_take;
    -- No request id has a slash, so that nobody can have used this key before.
    PERFORM post_transfer(p_org, g.grant_id || '/' || v_cut, 'posting', CASE g.cause WHEN 'expired' THEN 'breakage' ELSE 'grant_void' END,
                          v_wallet, account_of(p_org, CASE WHEN g.cause = 'expired' THEN 'breakage' ELSE grant_source(g.category) END),
                          v_take, '{}', 0::smallint, g.actor, g.reason, p_at);
    INSERT INTO grant_burns (organization_id, cut, grant_id, cause, amount_micros) VALUES (p_org, v_cut, g.grant_id, g.cause, v_take);
    UPDATE open_grants SET remaining_micros = remaining_micros - v_take WHERE grant_id = g.grant_id;
    v_actors := v_actors || g.actor;
    v_actions := v_actions || CASE g.cause WHEN 'expired' THEN 'grant.expired' ELSE 'grant.returned' END;
    v_subjects := v_subjects || g.grant_id;
    v_details := v_details || ('{"amount_micros":' || v_take || ',"remaining_micros":' || (g.remaining_micros - v_take) || '}');
  END LOOP;
  DELETE FROM open_grants WHERE organization_id = p_org AND remaining_micros = 0;
  PERFORM append_audit(p_org, p_at, v_actors, v_actions, v_subjects, v_details);
  PERFORM emit_events(p_org, p_at, v_actions, v_subjects, v_details);
END $$;

-- Where a lot's credits come from, and go back to when it is voided.
CREATE FUNCTION grant_source(p_category text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE p_category WHEN 'paid' THEN 'purchases' ELSE 'promotions' END
$$;

-- Take expired credits before anything else is decided; the caller holds the lock. One probe of an index when none are due.
CREATE FUNCTION expire_grants(p_org text, p_at timestamptz) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
  IF EXISTS (SELECT 1 FROM open_grants WHERE organization_id = p_org AND due_at <= p_at) THEN
    PERFORM take_due_grants(p_org, p_at);
  END IF;
END $$;

-- The same for the job of a lot, in a commit of its own. Returns whether something stays due, covered by holds in flight.
CREATE FUNCTION expire_grants_of(p_org text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  PERFORM expire_grants(p_org, v_at);
  RETURN EXISTS (SELECT 1 FROM open_grants WHERE organization_id = p_org AND due_at <= v_at);
END $$;

-- What lots still hold now: credits that were given, or expire, and so must not be paid out as bought ones.
CREATE FUNCTION granted_micros(p_org text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE w record; v_total bigint;
BEGIN
  SELECT coalesce(sum(remaining_micros), 0) INTO v_total FROM open_grants WHERE organization_id = p_org;
  IF v_total = 0 THEN RETURN 0; END IF;
  SELECT * INTO w FROM spent_since_cut(p_org);
  RETURN greatest(least(v_total - greatest(w.spent, 0), w.settled), 0);
END $$;

-- Status: 1 made, 2 the key was used for another request (`field` names what differs), 3 it would be born expired, 4 the
-- organization has `p_open_max` open lots.
CREATE FUNCTION make_grant(
  p_org text, p_id text, p_key text, p_amount bigint, p_priority int, p_expires timestamptz, p_category text,
  p_actor text, p_reason text, p_open_max int,
  OUT status smallint, OUT grant_id text, OUT replayed boolean, OUT field text
) LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v_seq bigint; v_detail text; g grants;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  status := 1; grant_id := p_id; replayed := false; field := '';
  SELECT * INTO g FROM grants x WHERE x.organization_id = p_org AND x.request_id = p_key;
  IF FOUND THEN
    field := CASE WHEN g.amount_micros <> p_amount THEN 'amount_micros' WHEN g.priority <> p_priority THEN 'priority'
                  WHEN g.expires_at IS DISTINCT FROM p_expires THEN 'expire_time' WHEN g.category <> p_category THEN 'category'
                  WHEN g.reason <> p_reason THEN 'reason' ELSE '' END;
    grant_id := g.id; replayed := field = '';
    IF NOT replayed THEN status := 2; END IF;
    RETURN;
  END IF;
  IF EXISTS (SELECT 1 FROM transfers x WHERE x.organization_id || '' = p_org AND x.key = p_key AND x.phase = 'posting') THEN
    status := 2; field := 'kind'; RETURN;
  END IF;
  IF p_expires <= v_at THEN status := 3; RETURN; END IF;
  PERFORM expire_grants(p_org, v_at);
  PERFORM cut_grants(p_org, v_at);
  IF (SELECT count(*) FROM open_grants WHERE organization_id = p_org) >= p_open_max THEN status := 4; RETURN; END IF;
  v_seq := post_transfer(p_org, p_key, 'posting', 'grant', account_of(p_org, grant_source(p_category)), account_of(p_org, 'wallet'),
                         p_amount, '{}', 0::smallint, p_actor, p_reason, v_at);
  INSERT INTO grants (id, organization_id, request_id, seq, amount_micros, priority, expires_at, category, actor, reason, made_at)
    VALUES (p_id, p_org, p_key, v_seq, p_amount, p_priority, p_expires, p_category, p_actor, p_reason, v_at);
  INSERT INTO open_grants (grant_id, organization_id, seq, priority, expires_at, remaining_micros, due_at, cause)
    VALUES (p_id, p_org, v_seq, p_priority, p_expires, p_amount, coalesce(p_expires, 'infinity'), 'expired');
  IF p_expires IS NOT NULL THEN
    PERFORM schedule_job('grants.expire', p_id, '{"organization_id":' || to_json(p_org) || '}', p_expires);
  END IF;
  v_detail := '{"amount_micros":' || p_amount || ',"category":' || to_json(p_category) || ',"reason":' || to_json(p_reason) || '}';
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['grant.made'], ARRAY[p_id], ARRAY[v_detail]);
  PERFORM emit_events(p_org, v_at, ARRAY['grant.made'], ARRAY[p_id], ARRAY[v_detail]);
END $$;

-- Status: 1 voided, 2 the key was used for another void (`field` names what differs), 3 no such grant, 4 nothing of it is
-- left to void.
CREATE FUNCTION void_grant(
  p_org text, p_grant text, p_key text, p_actor text, p_reason text,
  OUT status smallint, OUT replayed boolean, OUT field text
) LANGUAGE plpgsql AS $$
DECLARE v_at timestamptz; v_detail text; v grant_voids;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  status := 1; replayed := false; field := '';
  SELECT * INTO v FROM grant_voids x WHERE x.organization_id = p_org AND x.request_id = p_key;
  IF FOUND THEN
    field := CASE WHEN v.grant_id <> p_grant THEN 'grant_id' WHEN v.reason <> p_reason THEN 'reason' ELSE '' END;
    replayed := field = '';
    IF NOT replayed THEN status := 2; END IF;
    RETURN;
  END IF;
  IF NOT EXISTS (SELECT 1 FROM grants x WHERE x.id = p_grant AND x.organization_id = p_org) THEN status := 3; RETURN; END IF;
  PERFORM expire_grants(p_org, v_at);
  PERFORM cut_grants(p_org, v_at);
  UPDATE open_grants o SET due_at = v_at, cause = 'voided' WHERE o.grant_id = p_grant AND o.due_at > v_at;
  IF NOT FOUND THEN status := 4; RETURN; END IF;
  INSERT INTO grant_voids (organization_id, request_id, grant_id, actor, reason, voided_at)
    VALUES (p_org, p_key, p_grant, p_actor, p_reason, v_at);
  v_detail := '{"reason":' || to_json(p_reason) || '}';
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['grant.voided'], ARRAY[p_grant], ARRAY[v_detail]);
  PERFORM emit_events(p_org, v_at, ARRAY['grant.voided'], ARRAY[p_grant], ARRAY[v_detail]);
  PERFORM take_due_grants(p_org, v_at);
  PERFORM schedule_job('grants.expire', p_grant || '/void', '{"organization_id":' || to_json(p_org) || '}', v_at);
END $$;

-- Derive an organization's open lots from the facts again.
CREATE FUNCTION rebuild_open_grants(p_org text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM lock_organization(p_org);
  DELETE FROM open_grants WHERE organization_id = p_org;
  INSERT INTO open_grants (grant_id, organization_id, seq, priority, expires_at, remaining_micros, due_at, cause)
    SELECT g.id, p_org, g.seq, g.priority, g.expires_at, g.amount_micros - b.burned,
           coalesce(v.voided_at, g.expires_at, 'infinity'), CASE WHEN v.grant_id IS NULL THEN 'expired' ELSE 'voided' END
      FROM grants g LEFT JOIN grant_voids v ON v.grant_id = g.id
      CROSS JOIN LATERAL (SELECT coalesce(sum(x.amount_micros), 0)::bigint AS burned FROM grant_burns x WHERE x.grant_id = g.id) b
     WHERE g.organization_id = p_org AND g.amount_micros > b.burned;
END $$;
