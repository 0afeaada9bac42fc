-- What other services told, signed heads, and the tree that they sign.

-- Which entry holds a source's fact: each number once, for ever.
CREATE TABLE audit_sources (
  organization_id text NOT NULL,
  source          text NOT NULL,
  source_seq      bigint NOT NULL CHECK (source_seq > 0),
  seq             bigint NOT NULL,
  PRIMARY KEY (organization_id, source, source_seq)
);

-- Public keys of the signer: the record, and its signature by the key before.
CREATE TABLE audit_keys (
  id          text PRIMARY KEY,
  ordinal     bigint GENERATED ALWAYS AS IDENTITY,
  line        text NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE audit_heads (
  organization_id text NOT NULL,
  seq             bigint NOT NULL CHECK (seq > 0),
  head            text NOT NULL,
  signature       bytea NOT NULL,
  recorded_at     timestamptz NOT NULL,
  PRIMARY KEY (organization_id, seq)
);

-- Derived: roots of complete subtrees of 256 entries and more. `position` counts the subtrees of a level from 0.
CREATE TABLE audit_subtrees (
  organization_id text NOT NULL,
  level           smallint NOT NULL CHECK (level >= 8),
  position        bigint NOT NULL,
  hash            bytea NOT NULL CHECK (octet_length(hash) = 32),
  PRIMARY KEY (organization_id, level, position)
);

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['audit_sources', 'audit_keys', 'audit_heads'] LOOP
    EXECUTE format('CREATE TRIGGER %I_unchanging BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()', name, name);
    EXECUTE format('CREATE TRIGGER %I_untruncated BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name, name);
    EXECUTE format('GRANT SELECT, INSERT ON %I TO mandate_ledger', name);
  END LOOP;
END $$;
GRANT SELECT, INSERT, DELETE ON audit_subtrees TO mandate_ledger;

-- Append a source's facts in order. A detail is the object {"fact", "source", "source_seq", "source_time"}; where the
-- source used a number before, the answer says in which field the two differ, '' for a replay.
CREATE FUNCTION append_facts(
  p_org text, p_source text, p_source_seq bigint[], p_actor text[], p_action text[], p_subject text[], p_detail text[]
) RETURNS TABLE (fact_seq bigint, was_there boolean, differs text) LANGUAGE plpgsql AS $$
DECLARE
  v_last bigint; v_at timestamptz; v_seq bigint; v_line json; i int;
  v_new int[] := '{}';
BEGIN
  PERFORM lock_organization(p_org);
  v_at := ledger_time(p_org);
  SELECT coalesce(max(a.seq), 0) INTO v_last FROM audit a WHERE a.organization_id = p_org;
  FOR i IN 1..cardinality(p_source_seq) LOOP
    SELECT s.seq, a.line::json INTO v_seq, v_line FROM audit_sources s JOIN audit a USING (organization_id, seq)
      WHERE s.organization_id = p_org AND s.source = p_source AND s.source_seq = p_source_seq[i];
    IF FOUND THEN
      fact_seq := v_seq;
      was_there := true;
      differs := CASE
        WHEN v_line ->> 'actor' <> p_actor[i] THEN 'actor'
        WHEN v_line ->> 'action' <> p_action[i] THEN 'action'
        WHEN v_line ->> 'subject' <> p_subject[i] THEN 'subject'
        WHEN v_line -> 'detail' ->> 'source_time' <> p_detail[i]::json ->> 'source_time' THEN 'time'
        WHEN (v_line -> 'detail')::text <> p_detail[i] THEN 'detail'
        ELSE '' END;
    ELSE
      v_new := v_new || i;
      fact_seq := v_last + cardinality(v_new);
      was_there := false;
      differs := '';
    END IF;
    RETURN NEXT;
  END LOOP;
  IF cardinality(v_new) > 0 THEN
    PERFORM append_audit(p_org, v_at, array_agg(p_actor[n] ORDER BY o), array_agg(p_action[n] ORDER BY o),
                         array_agg(p_subject[n] ORDER BY o), array_agg(p_detail[n] ORDER BY o))
      FROM unnest(v_new) WITH ORDINALITY t(n, o);
    INSERT INTO audit_sources (organization_id, source, source_seq, seq)
      SELECT p_org, p_source, p_source_seq[n], v_last + o FROM unnest(v_new) WITH ORDINALITY t(n, o);
  END IF;
END $$;

-- The first entry that was recorded at `p_at` or later, one past the last where there is none. An organization's times
-- never go back, so a search by halves finds it without an index on time.
CREATE FUNCTION audit_seq_at(p_org text, p_at timestamptz) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
  v_low bigint := 1; v_high bigint; v_middle bigint;
BEGIN
  SELECT coalesce(max(seq), 0) + 1 INTO v_high FROM audit WHERE organization_id = p_org;
  WHILE v_low < v_high LOOP
    v_middle := (v_low + v_high) / 2;
    IF (SELECT recorded_at FROM audit WHERE organization_id = p_org AND seq = v_middle) < p_at THEN
      v_low := v_middle + 1;
    ELSE
      v_high := v_middle;
    END IF;
  END LOOP;
  RETURN v_low;
END $$;

-- Organizations after `p_after` whose chain is longer than what was signed, looking at `p_count` chains; `organization`
-- is every chain looked at, in order, so that the caller knows where to go on.
CREATE FUNCTION unsigned_chains(p_after text, p_count int) RETURNS TABLE (organization text, unsigned boolean)
LANGUAGE sql STABLE AS $$
  WITH RECURSIVE chains (id, n) AS (
    (SELECT organization_id, 1 FROM audit WHERE organization_id > p_after ORDER BY organization_id LIMIT 1)
    UNION ALL
    SELECT (SELECT a.organization_id FROM audit a WHERE a.organization_id > c.id ORDER BY a.organization_id LIMIT 1), c.n + 1
      FROM chains c WHERE c.id IS NOT NULL AND c.n < p_count
  )
  SELECT c.id, (SELECT max(a.seq) FROM audit a WHERE a.organization_id = c.id)
               > coalesce((SELECT max(h.seq) FROM audit_heads h WHERE h.organization_id = c.id), 0)
    FROM chains c WHERE c.id IS NOT NULL ORDER BY c.n
$$;
