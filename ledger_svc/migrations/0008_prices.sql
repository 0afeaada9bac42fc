-- Rates are micro-credits for 1,000,000 tokens; the newest row of a model is in force.
CREATE TABLE prices (
  id                           text PRIMARY KEY,
  ordinal                      bigint GENERATED ALWAYS AS IDENTITY,
  provider                     text NOT NULL,
  model                        text NOT NULL,
  input_micros_per_mtok        bigint NOT NULL CHECK (input_micros_per_mtok >= 0),
  cached_input_micros_per_mtok bigint NOT NULL CHECK (cached_input_micros_per_mtok >= 0),
  cache_write_micros_per_mtok  bigint NOT NULL CHECK (cache_write_micros_per_mtok >= 0),
  output_micros_per_mtok       bigint NOT NULL CHECK (output_micros_per_mtok >= 0),
  reasoning_micros_per_mtok    bigint NOT NULL CHECK (reasoning_micros_per_mtok >= 0),
  request_micros               bigint NOT NULL CHECK (request_micros >= 0),
  context_tokens               bigint NOT NULL CHECK (context_tokens > 0),
  output_tokens_max            bigint NOT NULL CHECK (output_tokens_max > 0),
  source                       text NOT NULL CHECK (source <> ''),
  source_date                  date NOT NULL,
  recorded_at                  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX prices_in_force ON prices (provider, model, ordinal DESC);

CREATE TRIGGER prices_unchanging BEFORE UPDATE OR DELETE ON prices FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prices_untruncated BEFORE TRUNCATE ON prices FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON prices TO mandate_ledger;
