"""Every Prometheus metric of the mesh, and the server that shows them. A metric is declared here or nowhere."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.exposition import generate_latest

REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)

RPC_HANDLED = Counter("mandate_rpc_handled_total", "RPCs served.", ["method", "code"], registry=REGISTRY)
RPC_SECONDS = Histogram("mandate_rpc_seconds", "Time to serve a unary RPC.", ["method"], registry=REGISTRY)
COMPLETIONS = Counter(
    "mandate_completions_total", "Completions by outcome.", ["provider", "outcome"], registry=REGISTRY
)
COMPLETION_SECONDS = Histogram(
    "mandate_completion_seconds", "Time from a completion's first byte in to its last out.", registry=REGISTRY
)
REFUSALS = Counter("mandate_refusals_total", "Requests that the gateway refused.", ["code"], registry=REGISTRY)
OPERATIONS = Counter(
    "mandate_graphql_operations_total", "GraphQL operations by their answer's status.", ["status"], registry=REGISTRY
)
OPERATION_SECONDS = Histogram(
    "mandate_graphql_operation_seconds", "Time to answer a GraphQL operation.", registry=REGISTRY
)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
LEDGER_BATCH = Histogram(
    "mandate_ledger_batch_items", "Items that shared one commit.", ["kind"], registry=REGISTRY, buckets=SIZES
)
HOLDS_UNCERTAIN = Counter("mandate_holds_uncertain_total", "Holds whose holder lapsed.", registry=REGISTRY)
AUDIT_BROKEN = Counter(
    "mandate_audit_broken_total", "Audit chains that were found broken, not signed.", registry=REGISTRY
)
AUDIT_REFUSED = Counter(
    "mandate_audit_refused_total", "Audit facts that the ledger refused and the log alone has.", registry=REGISTRY
)
JOBS = Counter("mandate_jobs_total", "Slow work: done, failed, dead or lost.", ["kind", "outcome"], registry=REGISTRY)
LATE_SECONDS = (0.1, 0.5, 1, 2, 5, 15, 60, 300, 1800)
JOB_LATE = Histogram(
    "mandate_job_late_seconds", "From when a job was due to its start.", registry=REGISTRY, buckets=LATE_SECONDS
)
OUTBOX_WAITING = Gauge("mandate_outbox_waiting", "Events that wait for delivery.", ["schema"], registry=REGISTRY)


def text() -> bytes:
    """Return all metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)


def serve(host: str, port: int) -> None:
    """Answer scrapes on a thread of its own."""
    start_http_server(port, addr=host, registry=REGISTRY)
