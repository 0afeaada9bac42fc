-- Sealed secrets and the wrapped keys that open them; the root keys are in a keyring outside the database.

-- One row a version of an organization's own key, sealed by a root key.
CREATE TABLE tenant_keys (
  organization_id text NOT NULL,
  version         int NOT NULL CHECK (version > 0),
  root_key_id     text NOT NULL,
  wrapped         bytea NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (organization_id, version)
);

-- Model providers' keys of organizations; of the rows of a provider that are not removed, the newest is in use.
CREATE TABLE credentials (
  id              text PRIMARY KEY,
  ordinal         bigint GENERATED ALWAYS AS IDENTITY,
  organization_id text NOT NULL,
  provider        text NOT NULL CHECK (provider IN ('openai', 'anthropic')),
  label           text NOT NULL,
  base_url        text NOT NULL,
  hint            text NOT NULL CHECK (length(hint) <= 4),
  key_version     int NOT NULL,
  sealed          bytea,            -- destroyed by removal; the row stays
  created_by      text NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT now(),
  removed_by      text,
  removed_at      timestamptz,
  FOREIGN KEY (organization_id, key_version) REFERENCES tenant_keys (organization_id, version),
  CHECK ((sealed IS NULL) = (removed_at IS NOT NULL)),
  CHECK ((removed_by IS NULL) = (removed_at IS NULL))
);
CREATE INDEX credentials_of_organization ON credentials (organization_id, ordinal DESC);
CREATE INDEX credentials_in_use ON credentials (organization_id, provider, ordinal DESC) WHERE removed_at IS NULL;

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

GRANT USAGE ON SCHEMA vault TO mandate_vault;
GRANT SELECT, INSERT ON tenant_keys, credentials, requests TO mandate_vault;
GRANT UPDATE (sealed, removed_by, removed_at) ON credentials TO mandate_vault;
