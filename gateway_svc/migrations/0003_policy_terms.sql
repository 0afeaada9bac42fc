-- More that a policy may limit, and the order of changes to all that gateways keep; the newest 10,000 stay.
ALTER TABLE policies
  ADD COLUMN allowed_tools                text[],
  ADD COLUMN allowed_endpoints            text[],
  ADD COLUMN allowed_providers            text[],
  ADD COLUMN max_cost_micros_per_request  bigint CHECK (max_cost_micros_per_request > 0),
  ADD COLUMN cut_abandoned_streams        boolean NOT NULL DEFAULT false,
  ADD COLUMN updated_at                   timestamptz;

CREATE TABLE changes (
  revision  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  subject   text NOT NULL
);

GRANT UPDATE (name, allowed_models, allowed_tools, allowed_endpoints, allowed_providers, max_tokens_per_request,
  requests_per_minute, tokens_per_minute, max_cost_micros_per_request, cut_abandoned_streams, updated_at)
  ON policies TO mandate_gateway;
GRANT SELECT, INSERT, DELETE ON changes TO mandate_gateway;
