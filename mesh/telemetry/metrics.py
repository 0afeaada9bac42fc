"""Every Prometheus metric of the mesh, and the server that shows them. A metric is declared here or nowhere."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.exposition import generate_latest

from mesh.telemetry.tallies import Counters, Histograms

REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)

RPC_HANDLED = Counter("mandate_rpc_handled_total", "RPCs served.", ["method", "code"], registry=REGISTRY)
RPC_SECONDS = Histogram("mandate_rpc_seconds", "Time to serve a unary RPC.", ["method"], registry=REGISTRY)
REFUSALS = Counter("mandate_refusals_total", "Requests that the gateway refused.", ["code"], registry=REGISTRY)
IN_FLIGHT = Gauge("mandate_requests_in_flight", "Requests of agents that are being served.", registry=REGISTRY)
SHED = Counter("mandate_shed_total", "What was refused because too much is open, by what.", ["what"], registry=REGISTRY)
REPLAYS = Counter("mandate_replays_total", "Answers that were given again.", ["dialect"], registry=REGISTRY)
VIOLATIONS = Counter("mandate_violations_total", "Refusals by policy, on record.", ["reason"], registry=REGISTRY)
CIRCUITS_OPENED = Counter(
    "mandate_circuits_opened_total", "Times that an upstream was given up for a while.", ["provider"], registry=REGISTRY
)
ANSWERS_CUT = Counter(
    "mandate_answers_cut_total", "Answers that a failure of ours ended after they had begun.", registry=REGISTRY
)
UNREADABLE = Counter(
    "mandate_requests_unreadable_total", "What clients sent that was no HTTP request.", ["error"], registry=REGISTRY
)
STREAMS_LEFT = Counter(
    "mandate_streams_left_total", "Streams that nobody read to their end, by theirs.", ["ending"], registry=REGISTRY
)

# Named by OpenTelemetry's conventions for generative AI, with the units that Prometheus adds.
OPERATION_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
TOKEN_BOUNDS = tuple(4**power for power in range(14))
DURATION_BOUNDS = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
OVERHEAD_BOUNDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 4)
TOKEN_USAGE = Histograms(
    "gen_ai_client_token_usage",
    "Tokens that completions were charged for.",
    (*OPERATION_LABELS, "gen_ai_token_type"),
    TOKEN_BOUNDS,
)
UPSTREAM_SECONDS = Histograms(
    "gen_ai_client_operation_duration_seconds",
    "Time that providers took, each attempt on its own.",
    (*OPERATION_LABELS, "error_type"),
    DURATION_BOUNDS,
)
REQUEST_SECONDS = Histograms(
    "gen_ai_server_request_duration_seconds",
    "Time from a completion's first byte in to its last out.",
    (*OPERATION_LABELS, "error_type"),
    DURATION_BOUNDS,
)
FIRST_TOKEN_SECONDS = Histograms(
    "gen_ai_server_time_to_first_token_seconds",
    "Time from a streamed completion's first byte in to its first token.",
    OPERATION_LABELS,
    FIRST_TOKEN_BOUNDS,
)
OVERHEAD_SECONDS = Histograms(
    "mandate_overhead_seconds", "Time of a completion that no provider took.", ("dialect",), OVERHEAD_BOUNDS
)
COMPLETIONS = Counters("mandate_completions", "Completions by outcome.", ("provider", "model", "dialect", "outcome"))
TOKENS = Counters("mandate_tokens", "Tokens charged, each in one class.", ("provider", "model", "class"))
for each in (
    TOKEN_USAGE,
    UPSTREAM_SECONDS,
    REQUEST_SECONDS,
    FIRST_TOKEN_SECONDS,
    OVERHEAD_SECONDS,
    COMPLETIONS,
    TOKENS,
):
    REGISTRY.register(each)

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
LEDGER_WAYS = Counter(
    "mandate_ledger_batches_total", "Batches that were plain, or why they were walked.", ["way"], registry=REGISTRY
)
LEDGER_WAITING = Gauge("mandate_ledger_waiting_items", "Items that wait for a commit.", registry=REGISTRY)
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
