"""What an answer says about its own charge: `x_platform`, spliced into the provider's bytes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from gateway_svc.dialects.reading import JsonObject
from mesh.money import MICROS_PER_CREDIT


@dataclass(frozen=True, slots=True)
class Receipt:
    """One settled completion."""

    request_id: str
    charged_micros: int
    balance_micros: int
    latency_ms: float
    overhead_ms: float

    def members(self) -> JsonObject:
        """Return it as JSON; credits are for people, micro-credits are exact."""
        return {
            "request_id": self.request_id,
            "credits_charged": self.charged_micros / MICROS_PER_CREDIT,
            "micro_credits_charged": self.charged_micros,
            "balance_micro_credits": self.balance_micros,
            "latency_ms": round(self.latency_ms, 3),
            "overhead_ms": round(self.overhead_ms, 3),
        }


def in_body(body: bytes, receipt: Receipt) -> bytes:
    """Add `x_platform` as the last member of a JSON object."""
    head = body.rstrip()
    if not head.startswith(b"{") or not head.endswith(b"}"):
        return body
    inner = head[:-1].rstrip()
    comma = b"" if inner == b"{" else b","
    return inner + comma + b'"x_platform":' + orjson.dumps(receipt.members()) + b"}"
