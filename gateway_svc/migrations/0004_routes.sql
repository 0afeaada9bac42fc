-- Names of an organization's own for models. A route's targets are replaced as a whole; a removed one keeps its last.
CREATE TABLE routes (
  id               text PRIMARY KEY,
  organization_id  text NOT NULL,
  alias            text NOT NULL,
  created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  removed_at       timestamptz
);

CREATE UNIQUE INDEX alias_in_force ON routes (organization_id, alias) WHERE removed_at IS NULL;
CREATE INDEX routes_of_organization ON routes (organization_id, id);

-- The limits are there together, for models without a price, or not at all.
CREATE TABLE route_targets (
  route_id           text NOT NULL REFERENCES routes (id),
  place              smallint NOT NULL CHECK (place BETWEEN 1 AND 8),
  provider           text NOT NULL,
  model              text NOT NULL,
  weight             smallint NOT NULL CHECK (weight BETWEEN 0 AND 1000),
  tier               smallint NOT NULL CHECK (tier BETWEEN 0 AND 7),
  context_tokens     bigint CHECK (context_tokens > 0),
  output_tokens_max  bigint CHECK (output_tokens_max BETWEEN 1 AND context_tokens),
  PRIMARY KEY (route_id, place),
  UNIQUE (route_id, provider, model),
  CHECK ((context_tokens IS NULL) = (output_tokens_max IS NULL))
);

GRANT SELECT, INSERT ON routes, route_targets TO mandate_gateway;
GRANT UPDATE (alias, updated_at, removed_at) ON routes TO mandate_gateway;
GRANT DELETE ON route_targets TO mandate_gateway;
