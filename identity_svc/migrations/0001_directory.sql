-- People, the hierarchy of agents, and their keys. Every secret is a digest (passwords argon2id, bearers and keys
-- SHA-256 of 256 random bits) or sealed.

CREATE TABLE people (
  id            text PRIMARY KEY,
  email         text NOT NULL UNIQUE CHECK (email = lower(email)),
  name          text NOT NULL,
  password_hash text NOT NULL,
  created_at    timestamptz NOT NULL
);

CREATE TABLE sessions (
  id           text PRIMARY KEY,
  person_id    text NOT NULL REFERENCES people (id),
  token_sha256 bytea NOT NULL UNIQUE CHECK (octet_length(token_sha256) = 32),
  created_at   timestamptz NOT NULL,
  expires_at   timestamptz NOT NULL,
  revoked_at   timestamptz
);
CREATE INDEX sessions_of_person ON sessions (person_id, id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- What changed, in the order in which it became visible: writers take one advisory lock before they insert here and
-- keep it until they commit, so whoever has read up to a revision never misses an earlier one.
CREATE TABLE changes (
  revision        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  organization_id text,  -- null: concerns a person
  subject_id      text NOT NULL,
  at              timestamptz NOT NULL
);

-- path_version is the revision at which the node came to stand where it stands.
CREATE TABLE organizations (
  id           text PRIMARY KEY,
  name         text NOT NULL,
  path_version bigint NOT NULL REFERENCES changes (revision),
  created_at   timestamptz NOT NULL
);

CREATE TABLE memberships (
  person_id       text NOT NULL REFERENCES people (id),
  organization_id text NOT NULL REFERENCES organizations (id),
  role            text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'billing', 'viewer')),
  created_at      timestamptz NOT NULL,
  PRIMARY KEY (person_id, organization_id)
);
CREATE INDEX memberships_of_organization ON memberships (organization_id, person_id);

CREATE TABLE workspaces (
  id              text PRIMARY KEY,
  organization_id text NOT NULL REFERENCES organizations (id),
  name            text NOT NULL,
  path_version    bigint NOT NULL REFERENCES changes (revision),
  created_at      timestamptz NOT NULL,
  UNIQUE (organization_id, id)
);

-- A node repeats the ids above it; the foreign keys keep them true.
CREATE TABLE agent_groups (
  id              text PRIMARY KEY,
  organization_id text NOT NULL,
  workspace_id    text NOT NULL,
  name            text NOT NULL,
  path_version    bigint NOT NULL REFERENCES changes (revision),
  created_at      timestamptz NOT NULL,
  UNIQUE (organization_id, workspace_id, id),
  FOREIGN KEY (organization_id, workspace_id) REFERENCES workspaces (organization_id, id)
);
CREATE INDEX agent_groups_of_organization ON agent_groups (organization_id, id);
CREATE INDEX agent_groups_of_workspace ON agent_groups (workspace_id, id);

CREATE TABLE agents (
  id              text PRIMARY KEY,
  organization_id text NOT NULL,
  workspace_id    text NOT NULL,
  agent_group_id  text NOT NULL,
  name            text NOT NULL,
  state           text NOT NULL CHECK (state IN ('active', 'suspended')),
  path_version    bigint NOT NULL REFERENCES changes (revision),
  created_at      timestamptz NOT NULL,
  UNIQUE (organization_id, id),
  FOREIGN KEY (organization_id, workspace_id, agent_group_id)
    REFERENCES agent_groups (organization_id, workspace_id, id)
);
CREATE INDEX agents_of_workspace ON agents (workspace_id, id);
CREATE INDEX agents_of_group ON agents (agent_group_id, id);

CREATE VIEW nodes AS
  SELECT id, id AS organization_id, ARRAY[id] AS path, path_version
    FROM organizations
  UNION ALL
  SELECT id, organization_id, ARRAY[organization_id, id], path_version
    FROM workspaces
  UNION ALL
  SELECT id, organization_id, ARRAY[organization_id, workspace_id, id], path_version
    FROM agent_groups
  UNION ALL
  SELECT id, organization_id, ARRAY[organization_id, workspace_id, agent_group_id, id], path_version
    FROM agents;

CREATE TABLE api_keys (
  id              text PRIMARY KEY,
  organization_id text NOT NULL,
  agent_id        text NOT NULL,
  name            text NOT NULL,
  prefix          text NOT NULL,
  key_sha256      bytea NOT NULL UNIQUE CHECK (octet_length(key_sha256) = 32),
  created_at      timestamptz NOT NULL,
  expires_at      timestamptz,
  revoked_at      timestamptz,
  FOREIGN KEY (organization_id, agent_id) REFERENCES agents (organization_id, id)
);
CREATE INDEX api_keys_of_agent ON api_keys (agent_id, id);

-- Keys that sign mesh tokens. A pending key is published but signs nothing yet; a retiring one signs nothing any more.
CREATE TABLE signing_keys (
  key_id             text PRIMARY KEY,
  state              text NOT NULL CHECK (state IN ('pending', 'active', 'retiring', 'gone')),
  jwk                text NOT NULL,
  sealed_private_key bytea NOT NULL,
  created_at         timestamptz NOT NULL,
  activated_at       timestamptz,
  retired_at         timestamptz
);
CREATE UNIQUE INDEX signing_keys_one_active ON signing_keys (state) WHERE state = 'active';
CREATE UNIQUE INDEX signing_keys_one_pending ON signing_keys (state) WHERE state = 'pending';

CREATE TABLE requests (
  actor      text NOT NULL,
  method     text NOT NULL,
  request_id text NOT NULL,
  request    bytea NOT NULL,
  digest     bytea NOT NULL,
  response   bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (actor, method, request_id)
);

CREATE TABLE outbox (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  payload    bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

GRANT USAGE ON SCHEMA identity TO mandate_identity;
GRANT SELECT, INSERT, UPDATE (password_hash) ON people TO mandate_identity;
GRANT SELECT, INSERT, UPDATE (revoked_at), DELETE ON sessions TO mandate_identity;
GRANT SELECT, INSERT ON changes, memberships, workspaces, agent_groups, requests TO mandate_identity;
GRANT SELECT, INSERT, UPDATE (name) ON organizations TO mandate_identity;
GRANT SELECT, INSERT, UPDATE (state) ON agents TO mandate_identity;
GRANT SELECT, INSERT, UPDATE (revoked_at) ON api_keys TO mandate_identity;
GRANT SELECT, INSERT, UPDATE (state, activated_at, retired_at) ON signing_keys TO mandate_identity;
GRANT SELECT, INSERT, DELETE ON outbox TO mandate_identity;
GRANT SELECT ON nodes TO mandate_identity;
