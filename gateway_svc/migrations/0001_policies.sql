CREATE TABLE requests (
  actor       text NOT NULL,
  method      text NOT NULL,
  request_id  text NOT NULL,
  request     bytea NOT NULL,
  digest      bytea NOT NULL,
  response    bytea NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (actor, method, request_id)
);

CREATE TABLE policies (
  id                      text PRIMARY KEY,
  organization_id         text NOT NULL,
  target_id               text NOT NULL,
  name                    text NOT NULL,
  allowed_models          text[],
  max_tokens_per_request  bigint CHECK (max_tokens_per_request > 0),
  requests_per_minute     bigint CHECK (requests_per_minute > 0),
  tokens_per_minute       bigint CHECK (tokens_per_minute > 0),
  created_at              timestamptz NOT NULL DEFAULT clock_timestamp(),
  removed_at              timestamptz
);

CREATE INDEX policies_of_target ON policies (target_id) WHERE removed_at IS NULL;
CREATE INDEX policies_of_organization ON policies (organization_id, id);

GRANT USAGE ON SCHEMA gateway TO mandate_gateway;
GRANT SELECT, INSERT ON requests TO mandate_gateway;
GRANT SELECT, INSERT ON policies TO mandate_gateway;
GRANT UPDATE (removed_at) ON policies TO mandate_gateway;
