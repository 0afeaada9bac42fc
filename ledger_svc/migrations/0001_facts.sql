-- Facts are rows that never change: privileges refuse it, and so do triggers. What may be deleted is derived.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of %.% are never changed', TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = '42501';
END $$;

-- Who is under whom, as identity says; the highest version of a node counts.
CREATE TABLE nodes (
  id              text NOT NULL,
  path_version    bigint NOT NULL,
  organization_id text NOT NULL,
  path            text[] NOT NULL CHECK (cardinality(path) BETWEEN 1 AND 4),
  recorded_at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (id, path_version)
);

CREATE TABLE verification_keys (
  key_id      text PRIMARY KEY,
  jwk         text NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE budgets (
  id              text PRIMARY KEY,
  organization_id text NOT NULL,
  target_id       text NOT NULL,   -- one column: a budget can have no second target
  period          text NOT NULL CHECK (period IN ('daily', 'monthly', 'total')),
  ordinal         int NOT NULL,    -- gapless within the organization: the highest says which budgets there are
  request_id      text NOT NULL,
  created_at      timestamptz NOT NULL,
  UNIQUE (organization_id, request_id),
  UNIQUE (organization_id, ordinal)
);
CREATE INDEX budgets_of_target ON budgets (organization_id, target_id);

-- What a budget says; the highest version counts.
CREATE TABLE budget_versions (
  budget_id    text NOT NULL REFERENCES budgets (id),
  version      int NOT NULL,
  limit_micros bigint NOT NULL CHECK (limit_micros >= 0),
  auto_disable boolean NOT NULL,
  disabled     boolean NOT NULL,
  request_id   text NOT NULL,
  actor        text NOT NULL,
  recorded_at  timestamptz NOT NULL,
  asked_limit_micros bigint,   -- what the request itself said; NULL where it left a value alone
  asked_auto_disable boolean,
  asked_disabled     boolean,
  PRIMARY KEY (budget_id, version)
);

-- How an organization wants its books kept; the highest version counts, and no row means the defaults.
CREATE TABLE rules (
  organization_id text NOT NULL,
  version         int NOT NULL,
  time_zone       text NOT NULL,   -- IANA name; windows of budgets and reports begin at its midnights
  uncertain       text NOT NULL CHECK (uncertain IN ('list', 'release', 'post')),  -- what becomes of uncertain holds
  default_price   text NOT NULL,   -- provider/model whose price unknown models have; '' refuses them
  request_id      text NOT NULL,
  actor           text NOT NULL,
  recorded_at     timestamptz NOT NULL,
  PRIMARY KEY (organization_id, version),
  UNIQUE (organization_id, request_id)
);

-- A wallet and its counterparts for each organization, and one account for each window of each budget. A budget's
-- balance falls below zero as it is used; its floor is minus its limit.
CREATE TABLE accounts (
  id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  organization_id text NOT NULL,
  kind            text NOT NULL CHECK (kind IN ('wallet', 'revenue', 'purchases', 'promotions', 'breakage', 'adjustments', 'suspense',
                                                 'receivable', 'breach', 'budget')),
  budget_id       text,
  window_start    timestamptz,
  opening_micros  bigint NOT NULL DEFAULT 0,  -- what the window had spent before the budget was made (0 or below)
  opened_at       timestamptz NOT NULL,
  CHECK ((kind = 'budget') = (budget_id IS NOT NULL AND window_start IS NOT NULL)),
  UNIQUE NULLS NOT DISTINCT (organization_id, kind, budget_id, window_start)
);

-- Accounts whose floors a charge counts against, the wallet first: what stands above an agent, kept once and referred to.
-- Holds of the agent take the newest one for as long as nothing that it was made of changes.
CREATE TABLE limit_sets (
  id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  organization_id text NOT NULL,
  agent_id        text NOT NULL,         -- '' when made for one settlement
  path            text[] NOT NULL,
  accounts        bigint[] NOT NULL,
  path_version    bigint NOT NULL,
  budgets         int NOT NULL,          -- the organization's last budget when it was made, and its rules' version
  rules           int NOT NULL,
  until           timestamptz NOT NULL   -- when the first of its windows ends
);
CREATE INDEX limit_sets_of_accounts ON limit_sets (hash_array(accounts));
CREATE INDEX limit_sets_of_agent ON limit_sets (organization_id, agent_id, id DESC);

-- The first answer to each request for a hold, for ever: granted or refused.
CREATE TABLE holds (
  organization_id  text NOT NULL,
  request_id       text NOT NULL,
  agent_id         text NOT NULL,
  api_key_id       text NOT NULL,
  end_user         text NOT NULL,
  holder_id        text NOT NULL,
  routes           text NOT NULL,       -- provider/model,provider/model
  price_ids        text[] NOT NULL,     -- one for each route
  input_tokens_max bigint NOT NULL,
  output_wanted    bigint NOT NULL,
  output_min       bigint NOT NULL,
  choices          int NOT NULL,
  cost_max_micros  bigint NOT NULL,     -- 0: no limit of its own
  status           smallint NOT NULL,   -- as place_holds answers it
  output_tokens    bigint NOT NULL,
  ceiling_micros   bigint NOT NULL CHECK (ceiling_micros >= 0),
  limit_set        bigint NOT NULL,     -- 0: refused
  blocker          text NOT NULL,
  target_id        text NOT NULL,
  short_micros     bigint NOT NULL,
  held_at          timestamptz NOT NULL,
  PRIMARY KEY (organization_id, request_id)
);

-- Accounts of budgets that were made while a hold was in flight: its settlement counts against them too.
CREATE TABLE hold_links (
  organization_id text NOT NULL,
  request_id      text NOT NULL,
  account_id      bigint NOT NULL,
  PRIMARY KEY (organization_id, request_id, account_id)
);

-- What became of a hold: held → settled (its row in `usage`) | voided | uncertain → settled (late) | voided (late) | resolved.
CREATE TABLE outcomes (
  organization_id text NOT NULL,
  request_id      text NOT NULL,
  phase           text NOT NULL CHECK (phase IN ('voided', 'uncertain', 'resolved')),
  charged_micros  bigint NOT NULL,
  reason          text NOT NULL DEFAULT '',
  resolution_key  text,    -- resolved: the key of the decision, and the amount it named (NULL: the ceiling)
  asked_micros    bigint,
  decided_at      timestamptz NOT NULL,
  PRIMARY KEY (organization_id, request_id, phase)
);
CREATE INDEX outcomes_uncertain ON outcomes (organization_id, decided_at, request_id) WHERE phase = 'uncertain';
CREATE UNIQUE INDEX outcomes_resolution ON outcomes (organization_id, resolution_key) WHERE phase = 'resolved';

-- One row a transfer: zero-sum by construction. No foreign keys to accounts: each check would write a lock on the hot
-- account's row, and the functions that insert here make the accounts themselves, in the same lock.
CREATE TABLE transfers (
  organization_id text NOT NULL,
  seq             bigint NOT NULL,      -- gapless within the organization
  key             text NOT NULL,        -- the idempotency key: request id and phase are unique for ever
  phase           text NOT NULL,
  kind            text NOT NULL,
  debit           bigint NOT NULL,
  credit          bigint NOT NULL,
  amount_micros   bigint NOT NULL CHECK (amount_micros > 0),
  limit_set       bigint NOT NULL DEFAULT 0,                -- whose budgets' accounts it counts against
  direction       smallint NOT NULL DEFAULT 0 CHECK (direction IN (-1, 0, 1)),  -- -1 uses the budgets, 1 gives back
  actor           text NOT NULL,
  reason          text NOT NULL DEFAULT '',
  posted_at       timestamptz NOT NULL,
  PRIMARY KEY (organization_id, seq),
  CHECK (debit <> credit),
  CHECK ((direction = 0) = (limit_set = 0))
);
-- A charge is made with its row in `usage`, whose key is as unique: one index less on the hot path. The key comes first,
-- and look-ups by it hide the organization (`organization_id || ''`): a plan that was made while the table was small would
-- otherwise as soon walk through all the organization's rows by the primary key.
CREATE UNIQUE INDEX transfers_key ON transfers (key, organization_id, phase) WHERE phase <> 'charge';

-- One row a completion, in the commit of its charge.
CREATE TABLE usage (
  organization_id     text NOT NULL,
  seq                 bigint NOT NULL,  -- gapless within the organization
  request_id          text NOT NULL,
  path                text[] NOT NULL,
  agent_id            text NOT NULL,
  api_key_id          text NOT NULL,
  end_user            text NOT NULL,   -- on whose behalf, as the request said it; '' when it did not
  provider            text NOT NULL,
  model               text NOT NULL,
  price_id            text NOT NULL,
  input_tokens        bigint NOT NULL,
  cached_input_tokens bigint NOT NULL,
  cache_write_tokens  bigint NOT NULL,
  output_tokens       bigint NOT NULL,
  reasoning_tokens    bigint NOT NULL,
  charged_micros      bigint NOT NULL,
  ceiling_micros      bigint NOT NULL,
  breach_micros       bigint NOT NULL,
  estimated           boolean NOT NULL,
  outcome             text NOT NULL,
  http_status         int NOT NULL,
  latency_ms          int NOT NULL,
  overhead_ms         int NOT NULL,
  first_token_ms      int NOT NULL,
  streamed            boolean NOT NULL,
  usage_source        text NOT NULL,   -- what the provider's own figures were; '' where nobody said
  attempts            smallint NOT NULL,   -- how often a provider was asked; 0 where nobody said
  dialect             text NOT NULL,   -- the interface it came by; '' where nobody said
  held_at             timestamptz NOT NULL,   -- whose windows it counts in
  used_at             timestamptz NOT NULL,
  PRIMARY KEY (organization_id, seq),
  UNIQUE (request_id, organization_id)   -- looked up as transfers_key is
);

-- One hash chain an organization: hash = SHA-256(the hash before it, then the line's UTF-8 bytes).
CREATE TABLE audit (
  organization_id text NOT NULL,
  seq             bigint NOT NULL,
  line            text NOT NULL,
  hash            bytea NOT NULL,
  recorded_at     timestamptz NOT NULL,
  PRIMARY KEY (organization_id, seq)
);

-- Derived, rebuilt from facts at will: an account's balance after each commit that touched it, and which holds are open.
CREATE TABLE checkpoints (
  account_id     bigint NOT NULL,
  at             timestamptz NOT NULL,   -- the commit's ledger time
  step           smallint NOT NULL,      -- counts within it
  transfer_seq   bigint NOT NULL,        -- the last transfer that is in it
  settled_micros bigint NOT NULL,
  held_micros    bigint NOT NULL,
  floor_micros   bigint NOT NULL,
  disabled       boolean NOT NULL,
  auto_disable   boolean NOT NULL,
  PRIMARY KEY (account_id, at, step)
);
CREATE TABLE open_holds (
  organization_id text NOT NULL,
  request_id      text NOT NULL,
  holder_id       text NOT NULL,
  held_at         timestamptz NOT NULL,
  PRIMARY KEY (organization_id, request_id)
);

-- The life of a gateway process.
CREATE TABLE leases (
  holder_id text PRIMARY KEY,
  opened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  beat_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  lapsed_at timestamptz
);

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['nodes', 'verification_keys', 'rules', 'budgets', 'budget_versions', 'accounts', 'limit_sets', 'holds',
                              'hold_links', 'outcomes', 'transfers', 'usage', 'audit'] LOOP
    EXECUTE format('CREATE TRIGGER %I_unchanging BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()', name, name);
    EXECUTE format('CREATE TRIGGER %I_untruncated BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name, name);
    EXECUTE format('GRANT SELECT, INSERT ON %I TO mandate_ledger', name);
  END LOOP;
END $$;

GRANT USAGE ON SCHEMA ledger TO mandate_ledger;
GRANT SELECT, INSERT ON checkpoints TO mandate_ledger;
GRANT SELECT, INSERT, DELETE ON open_holds TO mandate_ledger;
GRANT SELECT, INSERT, UPDATE ON leases TO mandate_ledger;

-- Every line that a transfer makes. Budgets are counted apart: each of their lines has its mirror on account 0, so that
-- all lines together sum to zero.
CREATE VIEW entries AS
  SELECT organization_id, seq, debit AS account_id, -amount_micros AS amount_micros FROM transfers
  UNION ALL
  SELECT organization_id, seq, credit, amount_micros FROM transfers
  UNION ALL
  SELECT t.organization_id, t.seq, unnest(s.accounts[2:]), t.amount_micros * t.direction
    FROM transfers t JOIN limit_sets s ON s.id = t.limit_set
  UNION ALL
  SELECT t.organization_id, t.seq, 0, -t.amount_micros * t.direction * (cardinality(s.accounts) - 1)
    FROM transfers t JOIN limit_sets s ON s.id = t.limit_set;
GRANT SELECT ON entries TO mandate_ledger;

-- How each hold ended, settlements included.
CREATE VIEW ends AS
  SELECT organization_id, request_id, 'settled' AS phase, charged_micros, used_at AS decided_at FROM usage
  UNION ALL
  SELECT organization_id, request_id, phase, charged_micros, decided_at FROM outcomes;
GRANT SELECT ON ends TO mandate_ledger;
