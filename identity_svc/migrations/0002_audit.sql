-- What was done here, on its way to the ledger's audit chain: numbered without a gap in each organization.
CREATE TABLE audit_counts (
  organization_id text PRIMARY KEY,
  last_seq        bigint NOT NULL
);

CREATE TABLE audit_outbox (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  payload    bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT, UPDATE (last_seq) ON audit_counts TO mandate_identity;
GRANT SELECT, INSERT, DELETE ON audit_outbox TO mandate_identity;
