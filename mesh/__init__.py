"""What every service stands on: bootstrap, the interceptor chain, errors, storage, telemetry. No service's rules."""
