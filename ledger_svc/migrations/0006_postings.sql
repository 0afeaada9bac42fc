-- Credits in and out of a wallet by hand: purchases, refunds, adjustments. The key is the request id, for ever.
--
-- Status: 1 posted, 2 not enough available, 3 no such purchase, 4 more than is left of the purchase, 5 the key was used
-- for another posting (`field` names what differs).

CREATE FUNCTION post_by_hand(
  p_org text, p_key text, p_kind text /* purchase, refund, adjustment */, p_amount bigint /* below 0: out of the wallet */,
  p_purchase text /* refunds: the key of the purchase */, p_actor text, p_reason text,
  OUT status smallint, OUT replayed boolean, OUT field text, OUT seq bigint
) LANGUAGE plpgsql AS $$
DECLARE
  v_at timestamptz; v_wallet bigint; v_other bigint; v_bought bigint; v_refunded bigint; v_reason text; t transfers; b record;
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  replayed := false; field := ''; status := 1;
  v_wallet := account_of(p_org, 'wallet');
  v_other := account_of(p_org, CASE WHEN p_kind = 'adjustment' THEN 'adjustments' ELSE 'purchases' END);
  v_reason := CASE WHEN p_kind = 'refund' THEN p_purchase || ': ' || p_reason ELSE p_reason END;
  SELECT * INTO t FROM transfers x WHERE x.organization_id = p_org AND x.key = p_key AND x.phase = 'posting';
  IF FOUND THEN
    field := CASE WHEN t.kind <> p_kind THEN 'kind'
                  WHEN (CASE WHEN t.debit = v_wallet THEN -t.amount_micros ELSE t.amount_micros END) <> p_amount THEN 'amount_micros'
                  WHEN t.reason <> v_reason THEN CASE WHEN p_kind = 'refund' AND left(t.reason, length(p_purchase) + 2) <> p_purchase || ': '
                                                      THEN 'purchase_request_id' ELSE 'reason' END
                  ELSE '' END;
    replayed := true; seq := t.seq;
    IF field <> '' THEN status := 5; END IF;
    RETURN;
  END IF;
  IF p_kind = 'refund' THEN
    SELECT x.amount_micros INTO v_bought FROM transfers x
      WHERE x.organization_id = p_org AND x.key = p_purchase AND x.phase = 'posting' AND x.kind = 'purchase';
    IF NOT FOUND THEN status := 3; RETURN; END IF;
    SELECT coalesce(sum(x.amount_micros), 0) INTO v_refunded FROM transfers x
      WHERE x.organization_id = p_org AND x.kind = 'refund' AND left(x.reason, length(p_purchase) + 2) = p_purchase || ': ';
    IF v_refunded - p_amount > v_bought THEN status := 4; RETURN; END IF;
  END IF;
  IF p_amount < 0 THEN
    SELECT * INTO b FROM balance_of(v_wallet);
    IF b.settled - b.held + p_amount < 0 THEN status := 2; RETURN; END IF;
    seq := post_transfer(p_org, p_key, 'posting', p_kind, v_wallet, v_other, -p_amount, '{}', 0::smallint, p_actor, v_reason, v_at);
  ELSE
    seq := post_transfer(p_org, p_key, 'posting', p_kind, v_other, v_wallet, p_amount, '{}', 0::smallint, p_actor, v_reason, v_at);
  END IF;
  PERFORM append_audit(p_org, v_at, ARRAY[p_actor], ARRAY['credits.' || p_kind], ARRAY[p_key],
    ARRAY['{"amount_micros":' || p_amount || ',"reason":' || to_json(v_reason) || '}']);
END $$;
CREATE INDEX transfers_refunds ON transfers (organization_id) WHERE kind = 'refund';
