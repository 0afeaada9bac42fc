"""The audit chain: take what other services did, list it, export it, prove it. Signing is in `signing.py`."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from ledger_svc import heads, wire
from ledger_svc.store import audit as store
from mandate.ledger.v1 import audit_pb2 as pb
from mandate.ledger.v1 import audit_pb2_grpc as rpc
from mesh import caller, canonical, faults, ids
from mesh.db import Database, Row
from mesh.errors import AlreadyExists, Internal, MeshError, NotFound, invalid
from mesh.paging import Page, next_token, page_of

FACTS_MAX = 200
ACTION = re.compile(r"[a-z][a-z_]*(\.[a-z_]+)+")
ACTION_FILTER = re.compile(r"[a-z][a-z_]*(\.[a-z_]+)*(\.\*)?")
ACTION_MAX, ACTOR_MAX, SUBJECT_MAX, DETAIL_BYTES_MAX = 64, 128, 200, 32_768
PAGE_DEFAULT, PAGE_MAX = 500, 1_000
SEQ = re.compile(r"[0-9]{1,18}")
OWN = "ledger"
TOLD = {"fact", "source", "source_seq", "source_time"}
YEAR_MIN = 1971  # an empty stamp is 1970
Context = grpc.aio.ServicerContext[Any, Any]


class AuditServicer(rpc.AuditServiceServicer):
    """Implements mandate.ledger.v1.AuditService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def AppendAudit(self, request: pb.AppendAuditRequest, context: Context) -> pb.AppendAuditResponse:
        if not 1 <= len(request.facts) <= FACTS_MAX:
            raise invalid("facts", f"must be 1 to {FACTS_MAX}")
        if len({(fact.organization_id, fact.source_seq) for fact in request.facts}) < len(request.facts):
            raise invalid("facts", "hold one number of an organization twice")
        source = caller.current().service
        answers = [
            pb.AppendedFact(organization_id=fact.organization_id, source_seq=fact.source_seq) for fact in request.facts
        ]
        sound: dict[str, list[tuple[pb.AppendedFact, store.Told]]] = {}
        for fact, answer in zip(request.facts, answers, strict=True):
            try:
                kept = told(source, fact)
            except MeshError as error:
                answer.fault.CopyFrom(faults.to_fault(error))
            else:
                sound.setdefault(fact.organization_id, []).append((answer, kept))
        for organization_id in sorted(sound):
            await self._append(source, sound[organization_id])
        return pb.AppendAuditResponse(facts=answers)

    async def ExportAudit(self, request: pb.ExportAuditRequest, context: Context) -> pb.ExportAuditResponse:
        if not 0 <= request.page_size <= PAGE_MAX:
            raise invalid("page_size", f"must be 0 to {PAGE_MAX}")
        if request.after_seq < 0:
            raise invalid("after_seq", "must not be below 0")
        size = request.page_size or PAGE_DEFAULT
        head = await store.signed_head(self._db, request.organization_id)
        rows = await store.lines(self._db, request.organization_id, request.after_seq, size + 1)
        response = pb.ExportAuditResponse(more=len(rows) > size, last_seq=request.after_seq)
        for row in rows[:size]:
            response.lines.append(f'{{"entry":{row["line"]},"hash":"{row["hash"].hex()}"}}')
            response.last_seq = row["seq"]
            if head is not None and head.seq == row["seq"]:
                response.lines.append(_head_line(head))
        return response

    async def ListAudit(self, request: pb.ListAuditRequest, context: Context) -> pb.ListAuditResponse:
        page, wanted = page_of(request.page_size, request.page_token), _filter(request)
        before = _before(page)
        low, high = await store.bounds(self._db, request.organization_id, wanted)
        high = high if before is None else min(high, before)
        looked_at = (max(low, high - store.SCAN_MAX), high)
        rows = await store.page(self._db, request.organization_id, looked_at, wanted, page.size + 1)
        token = next_token(page, [str(row["seq"]) for row in rows])
        if not token and looked_at[0] > low:  # nothing more among those looked at, but there are older ones
            token = next_token(Page(1, None), [str(looked_at[0]), ""])
        return pb.ListAuditResponse(entries=[_entry(row) for row in rows[: page.size]], next_page_token=token)

    async def GetAuditHead(self, request: pb.GetAuditHeadRequest, context: Context) -> pb.AuditHead:
        head = await self._head(request.organization_id)
        return pb.AuditHead(
            organization_id=request.organization_id,
            seq=head.seq,
            time=wire.stamp(head.recorded_at),
            key_id=heads.Head.of(head.text).key_id,
            line=_head_line(head),
        )

    async def ProveAuditEntry(self, request: pb.ProveAuditEntryRequest, context: Context) -> pb.ProveAuditEntryResponse:
        signed = await self._head(request.organization_id)
        if not 1 <= request.seq <= signed.seq:
            raise NotFound("NOT_FOUND", f"no signed entry {request.seq}", field="seq")
        number = request.seq - 1
        stored = await store.subtrees(self._db, request.organization_id, heads.stored_places(number, signed.seq))
        leaves: dict[int, bytes] = {}
        line = ""
        for start, end in heads.chunks(number, signed.seq):
            for row in await store.lines(self._db, request.organization_id, start, end - start):
                leaves[row["seq"] - 1] = heads.leaf(row["line"].encode())
                line = row["line"] if row["seq"] == request.seq else line
        tree = heads.Tree(stored, leaves)
        try:
            root, path = tree.root(signed.seq), tree.path(number, signed.seq)
        except KeyError:
            root, path = b"", []
        if root != heads.Head.of(signed.text).root:
            raise Internal("AUDIT_TREE_BROKEN", "the entries are not those that the head was signed over")
        steps = canonical.dumps({"path": [step.hex() for step in path]})
        return pb.ProveAuditEntryResponse(lines=[f'{{"entry":{line}}}', steps, _head_line(signed)])

    async def _append(self, source: str, facts: list[tuple[pb.AppendedFact, store.Told]]) -> None:
        """Append one organization's facts and fill in their answers."""
        done = await store.append(self._db, source, [fact for _, fact in facts])
        for (answer, _), appended in zip(facts, done, strict=True):
            if appended.differs:
                answer.fault.CopyFrom(faults.to_fault(_differs(appended.differs)))
            else:
                answer.seq, answer.replayed = appended.seq, appended.was_there

    async def _head(self, organization_id: str) -> store.SignedHead:
        head = await store.signed_head(self._db, organization_id)
        if head is None:
            raise NotFound("AUDIT_NOT_SIGNED", "nothing is signed yet", field="organization_id")
        return head


def told(source: str, fact: pb.AuditFact) -> store.Told:
    """Check a fact and put its detail into the form that the chain keeps."""
    if fact.source_seq < 1:
        raise invalid("source_seq", "must be 1 or more")
    if ids.kind_of(fact.organization_id) is not ids.Kind.ORGANIZATION:
        raise invalid("organization_id", "must be the id of an organization")
    if len(fact.action) > ACTION_MAX or not ACTION.fullmatch(fact.action):
        raise invalid("action", f"must be at most {ACTION_MAX} characters such as agent.created")
    for name, text, length_max in (("actor", fact.actor, ACTOR_MAX), ("subject", fact.subject, SUBJECT_MAX)):
        if not 1 <= len(text) <= length_max or "\x00" in text:
            raise invalid(name, f"must have 1 to {length_max} characters, none of them NUL")
    detail = {
        "fact": _detail(fact.detail),
        "source": source,
        "source_seq": fact.source_seq,
        "source_time": _moment(fact.time, "time").strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    try:
        kept = canonical.dumps(detail)
    except canonical.NotCanonical as error:
        raise invalid("detail", str(error)) from None
    return store.Told(fact.organization_id, fact.source_seq, fact.actor, fact.action, fact.subject, kept)


def _differs(field: str) -> AlreadyExists:
    return AlreadyExists("SOURCE_SEQ_REUSED", f"source_seq was used with another {field}", field=field)


def _detail(text: str) -> dict[str, Any]:
    if len(text.encode()) > DETAIL_BYTES_MAX:
        raise invalid("detail", f"must have at most {DETAIL_BYTES_MAX} bytes")
    try:
        found = canonical.loads(text)
    except canonical.NotCanonical as error:
        raise invalid("detail", str(error)) from None
    if not isinstance(found, dict):
        raise invalid("detail", "must be a JSON object")
    return found


def _moment(stamp: Timestamp, field: str) -> datetime:
    try:
        found = stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid(field, "is no moment between the years 1 and 9999") from None
    if found.year < YEAR_MIN:
        raise invalid(field, "must be set")
    return found


def _filter(request: pb.ListAuditRequest) -> store.Filter:
    if len(request.actor) > ACTOR_MAX or "\x00" in request.actor:
        raise invalid("actor", f"must have at most {ACTOR_MAX} characters, none of them NUL")
    if request.action and (len(request.action) > ACTION_MAX or not ACTION_FILTER.fullmatch(request.action)):
        raise invalid("action", "must be an action such as agent.created, or agent.*")
    start = _moment(request.start_time, "start_time") if request.HasField("start_time") else None
    end = _moment(request.end_time, "end_time") if request.HasField("end_time") else None
    if request.action.endswith(".*"):
        return store.Filter(request.actor, "", request.action[:-1], start, end)
    return store.Filter(request.actor, request.action, "", start, end)


def _before(page: Page) -> int | None:
    if page.after is None:
        return None
    if not SEQ.fullmatch(page.after):
        raise invalid("page_token", "was not given out by this list")
    return int(page.after)


def _entry(row: Row) -> pb.AuditEntry:
    """Pack an entry; what another service told lies inside the detail, beside that service's count."""
    detail, source, source_seq = row["detail"], OWN, 0
    if '"source_seq":' in detail:
        found = json.loads(detail)
        if found.keys() >= TOLD:
            detail = canonical.dumps(found["fact"])
            source, source_seq = found["source"], found["source_seq"]
    return pb.AuditEntry(
        seq=row["seq"],
        actor=row["actor"],
        action=row["action"],
        subject=row["subject"],
        detail=detail,
        time=wire.stamp(row["recorded_at"]),
        source=source,
        source_seq=source_seq,
    )


def _head_line(head: store.SignedHead) -> str:
    return f'{{"head":{head.text},"keys":[{",".join(head.keys)}],"signature":"{head.signature.hex()}"}}'
