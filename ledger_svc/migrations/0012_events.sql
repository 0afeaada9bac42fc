-- What happened in the ledger that others act on, written in the commit of the fact and read as a stream by those above.
-- Kept for 30 days: the audit chain is what lasts.

CREATE TABLE events (
  revision        bigint PRIMARY KEY,  -- gapless, in the order in which events became visible
  organization_id text NOT NULL,
  type            text NOT NULL,
  subject_id      text NOT NULL,
  detail          text NOT NULL,       -- canonical JSON
  recorded_at     timestamptz NOT NULL
);
GRANT SELECT, INSERT, DELETE ON events TO mandate_ledger;

-- Tell of facts. The caller holds the organization's lock; this one comes after it, in a statement of its own, and stays
-- until the commit: whoever has read up to a revision can never miss an earlier one. The newest event is never deleted,
-- so that the next revision follows it.
CREATE FUNCTION emit_events(p_org text, p_at timestamptz, p_types text[], p_subjects text[], p_details text[])
RETURNS void LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
  IF cardinality(p_types) = 0 THEN RETURN; END IF;
  PERFORM pg_advisory_xact_lock(7103, 0);
  INSERT INTO events (revision, organization_id, type, subject_id, detail, recorded_at)
    SELECT (SELECT coalesce(max(revision), 0) FROM events) + o, p_org, t, s, d, p_at
      FROM unnest(p_types, p_subjects, p_details) WITH ORDINALITY x(t, s, d, o);
END $$;

-- Forget the oldest events, at most 5,000 a call; only ever from the front, so that no hole opens. Returns how many.
CREATE FUNCTION prune_events(p_before timestamptz) RETURNS bigint LANGUAGE sql AS $$
  WITH gone AS (
    DELETE FROM events WHERE revision IN (
      SELECT revision FROM events
       WHERE revision < coalesce((SELECT revision FROM events WHERE recorded_at >= p_before ORDER BY revision LIMIT 1),
                                 (SELECT max(revision) FROM events))
       ORDER BY revision LIMIT 5000)
    RETURNING 1)
  SELECT count(*) FROM gone
$$;
