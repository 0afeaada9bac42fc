"""Who is calling and on whose behalf: people, organizations, agents, keys. No money and no models."""
