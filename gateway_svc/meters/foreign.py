"""Tell what stands in a stream and is no event, as a whole answer that a server sent in a stream's place. Pure."""

from __future__ import annotations

from gateway_svc import sse

FIELDS = (b"data", b"event", b"id", b"retry", b"")  # what a line may begin with; comments begin with a colon


def is_foreign(event: bytes) -> bool:
    """Return whether a piece of a stream has no data, and lines that are neither comments nor fields of events.

    Such lines say nothing by the standard (HTML, 9.2.6), but whoever pays for what they hold must not skip them.
    """
    if sse.data_of(event):
        return False
    return any(line.partition(b":")[0] not in FIELDS for line in sse.LINE_END.split(event))
