-- Completions that were asked for under a key, so that the same request is neither run nor billed twice. The key itself
-- is not here. `transcript` is the sealed answer; a row without one still says that its key was used, and for what.
-- `beat_at` is a run's last sign of life: its gateway's last beat, and at last its end.
CREATE TABLE replays (
  agent_id          text NOT NULL,
  key_sha256        bytea NOT NULL,
  organization_id   text NOT NULL,
  request_sha256    bytea NOT NULL,
  request_id        text NOT NULL,
  state             text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'finished')),
  beat_at           timestamptz NOT NULL DEFAULT now(),
  created_at        timestamptz NOT NULL DEFAULT now(),
  status            integer,
  head              text,
  transcript        bytea,
  transcript_until  timestamptz,
  row_until         timestamptz NOT NULL,
  PRIMARY KEY (agent_id, key_sha256),
  CHECK (octet_length(key_sha256) = 32 AND octet_length(request_sha256) = 32),
  CHECK ((state = 'finished') = (status IS NOT NULL AND head IS NOT NULL AND transcript_until IS NOT NULL)),
  CHECK (transcript IS NULL OR (state = 'finished' AND transcript_until <= row_until))
) WITH (fillfactor = 80);   -- beats are updated in place: no index has beat_at

ALTER TABLE replays ALTER COLUMN transcript SET STORAGE EXTERNAL;   -- sealed, so that nothing compresses it further

CREATE INDEX replays_by_transcript_until ON replays (transcript_until) WHERE transcript IS NOT NULL;
CREATE INDEX replays_by_row_until ON replays (row_until);

GRANT SELECT, INSERT, DELETE ON replays TO mandate_gateway;
GRANT UPDATE (request_sha256, request_id, state, beat_at, created_at, status, head, transcript, transcript_until,
  row_until) ON replays TO mandate_gateway;
