-- Rates are micro-credits for 1,000,000 tokens. The newest row of a model is in force, unless it says that the model was
-- withdrawn: a withdrawal is a version of its own, with the rates of the one before it.
CREATE TABLE prices (
  id                           text PRIMARY KEY,
  ordinal                      bigint GENERATED ALWAYS AS IDENTITY,
  provider                     text NOT NULL,
  model                        text NOT NULL,
  input_micros_per_mtok        bigint NOT NULL CHECK (input_micros_per_mtok BETWEEN 0 AND 900000000000),
  cached_input_micros_per_mtok bigint NOT NULL CHECK (cached_input_micros_per_mtok BETWEEN 0 AND 900000000000),
  cache_write_micros_per_mtok  bigint NOT NULL CHECK (cache_write_micros_per_mtok BETWEEN 0 AND 900000000000),
  output_micros_per_mtok       bigint NOT NULL CHECK (output_micros_per_mtok BETWEEN 0 AND 900000000000),
  reasoning_micros_per_mtok    bigint NOT NULL CHECK (reasoning_micros_per_mtok BETWEEN 0 AND 900000000000),
  -- Rows of six: more than so many tokens of input, then the five rates as above. In this row, so that no tier can be
  -- added to a version later.
  tiers                        bigint[] NOT NULL CHECK (cardinality(tiers) % 6 = 0 AND cardinality(tiers) <= 24
                                                        AND 0 <= ALL (tiers) AND 900000000000 >= ALL (tiers)),
  request_micros               bigint NOT NULL CHECK (request_micros BETWEEN 0 AND 1000000000000),
  context_tokens               bigint NOT NULL CHECK (context_tokens > 0),
  longer_unpriced              boolean NOT NULL,
  output_tokens_max            bigint NOT NULL CHECK (output_tokens_max > 0),
  source                       text NOT NULL CHECK (source <> ''),
  source_date                  date NOT NULL,
  withdrawn                    boolean NOT NULL DEFAULT false,
  recorded_at                  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX prices_in_force ON prices (provider, model, ordinal DESC);

CREATE TRIGGER prices_unchanging BEFORE UPDATE OR DELETE ON prices FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prices_untruncated BEFORE TRUNCATE ON prices FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON prices TO mandate_ledger;
