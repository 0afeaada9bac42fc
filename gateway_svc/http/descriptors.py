"""How many files this process may have open, and how many of them may be clients' connections."""

from __future__ import annotations

import resource

from mesh.telemetry import logs

log = logs.get(__name__)


def connections_within(wanted: int) -> int:
    """Raise this process's own limit where it may be raised; return how many connections then leave half of it free.

    The other half is for providers, the mesh and the database: clients alone must not be able to use it up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 2 * wanted if hard == resource.RLIM_INFINITY else min(2 * wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        limit = soft
    else:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (ValueError, OSError):  # some systems allow less than they say
            limit = soft
    allowed = wanted if limit == resource.RLIM_INFINITY else min(wanted, max(1, limit // 2))
    if allowed < wanted:
        log.warn("http.descriptors_short", connections_max=allowed, wanted=wanted, limit=limit)
    return allowed
