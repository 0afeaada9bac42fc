"""What policies would say of a request, and which of them."""

from __future__ import annotations

import strawberry

from graphql_edge.schema.fields import Info, field
from graphql_edge.schema.policies import Limits, limits_of
from graphql_edge.schema.scalars import Int64
from graphql_edge.schema.targets import TargetInput, target_id
from mandate.gateway.v1 import policies_pb2 as pb


@strawberry.input
class AskedOfPoliciesInput:
    """A request; what is absent is not judged."""

    model: str = ""
    provider: str = ""
    endpoint: str = ""
    tools: list[str] = strawberry.field(default_factory=list)
    max_tokens: int | None = None
    input_tokens: int = 0


@strawberry.input
class ProposedPolicyInput(Limits):
    """A policy that counts beside those that there are, and is not kept; it stands on the node or above it."""

    target: TargetInput


@strawberry.type
class PolicyDecider:
    """A policy that decides; `policyId` is null for the proposed one, `names` are those of a list that decides."""

    target_id: strawberry.ID
    policy_id: strawberry.ID | None
    names: list[str]


@strawberry.type
class PolicyDecision:
    """What decides one kind of limit: `value` is the least of all numbers, and of lists every one must allow a name."""

    limit: str
    value: Int64 | None
    deciders: list[PolicyDecider]


@strawberry.type
class PolicyRefusal:
    """The reason of an error that the gateway would answer with, the name that is refused, and by which policies."""

    reason: str
    name: str
    deciders: list[PolicyDecider]


@strawberry.type
class PolicyExplanation:
    """What policies come to for a request; a null `outputTokensMax` leaves its output to the model.

    Rates and what a request may cost depend on more than policies: `decisions` tell them and they refuse nothing here.
    """

    allowed: bool
    decisions: list[PolicyDecision]
    refusals: list[PolicyRefusal]
    output_tokens_max: Int64 | None


@strawberry.type
class ExplanationQueries:
    """Ask before an agent does."""

    @field
    async def explain_policies(
        self, info: Info, node: TargetInput, asked: AskedOfPoliciesInput, proposed: ProposedPolicyInput | None = None
    ) -> PolicyExplanation | None:
        """Say which policies of a node and above decide what becomes of a request, with a proposed one if given."""
        request = pb.ExplainPoliciesRequest(
            node_id=target_id(node),
            asked=pb.AskedOfPolicies(
                model=asked.model,
                provider=asked.provider,
                endpoint=asked.endpoint,
                tools=asked.tools,
                max_tokens=asked.max_tokens,
                input_tokens=asked.input_tokens,
            ),
            proposed=None
            if proposed is None
            else pb.Policy(target_id=target_id(proposed.target), **limits_of(proposed)),
        )
        return _explanation_of(await info.context.call(info.context.stubs.policies.ExplainPolicies, request))


def _explanation_of(answer: pb.ExplainPoliciesResponse) -> PolicyExplanation:
    return PolicyExplanation(
        allowed=not answer.refusals,
        decisions=[
            PolicyDecision(
                limit=decision.limit,
                value=Int64(decision.value) if decision.HasField("value") else None,
                deciders=[_decider_of(decider) for decider in decision.deciders],
            )
            for decision in answer.decisions
        ],
        refusals=[
            PolicyRefusal(
                reason=refusal.reason,
                name=refusal.name,
                deciders=[_decider_of(decider) for decider in refusal.deciders],
            )
            for refusal in answer.refusals
        ],
        output_tokens_max=Int64(answer.output_tokens_max) if answer.HasField("output_tokens_max") else None,
    )


def _decider_of(decider: pb.PolicyDecider) -> PolicyDecider:
    return PolicyDecider(
        target_id=strawberry.ID(decider.target_id),
        policy_id=strawberry.ID(decider.policy_id) if decider.policy_id else None,
        names=list(decider.names),
    )
