"""What agents reach over HTTP: routes that parse and answer. Decisions are made elsewhere."""
