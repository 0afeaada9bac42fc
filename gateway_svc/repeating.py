"""Completions that are run once for each key that agents give them, and given again for the same one."""

from __future__ import annotations

from typing import Protocol

from gateway_svc import failures
from gateway_svc.admission import Admission, Ask
from gateway_svc.flow import ClientLeft, Completions, Reply
from gateway_svc.recorded import Recorded
from gateway_svc.relay import Client
from gateway_svc.repeats import Apart, keeps, request_sha256
from gateway_svc.replays import Fresh, Kept, Replays, Run
from gateway_svc.tellings.registry import TELLINGS
from gateway_svc.who import Agent
from mesh.errors import MeshError
from mesh.telemetry import metrics

DISPATCHED = ("UPSTREAM_CUT", "SETTLEMENT_PENDING")  # reasons of errors that came after something may have been billed


class Listener(Client, Protocol):
    """A client that may be given an answer whole."""

    async def whole(self, reply: Reply) -> None:
        """Send an answer, waiting no longer than a minute for a slow reader."""
        ...


class Repeating:
    """Stands in front of completions; a request that names no key goes straight through."""

    def __init__(self, completions: Completions, admission: Admission, replays: Replays) -> None:
        self._completions = completions
        self._admission = admission
        self._replays = replays

    async def run(self, ask: Ask, client: Listener) -> Reply | None:
        """Serve one completion, or give again the answer that it got before; None when the client has it already."""
        if ask.wish is None:
            return await self._completions.run(ask, client)
        agent = ask.agent
        digest = request_sha256("POST", ask.dialect, ask.body)
        match await self._replays.begin(ask.wish, agent, digest, ask.request_id):
            case Apart():
                return await self._completions.run(ask, client)
            case Fresh(run):
                return await self._once(run, ask, client)
            case Kept() as kept:
                await self._again(kept, ask, agent, client)
                return None

    async def _again(self, kept: Kept, ask: Ask, agent: Agent, client: Listener) -> None:
        """Give an answer again, where the agent's rates allow it; its memory is the replays' until it is read."""
        taken = await self._admission.repeated(ask, agent)
        async with self._replays.opened(kept) as replay:
            metrics.REPLAYS.labels(ask.dialect).inc()
            headers = {**replay.headers, **TELLINGS[ask.dialect].rates(taken)}
            await client.whole(Reply(replay.status, replay.body, headers, replay.content_type))

    async def _once(self, run: Run, ask: Ask, client: Client) -> Reply | None:
        """Serve it and keep its outcome; what ended before anything was dispatched leaves nothing behind."""
        try:
            reply = await self._completions.run(ask, Recorded(client, self._replays, run))
            if reply is None:
                return None
            if keeps(reply.status, reply.charged_micros):
                run.recorder.whole(reply.status, reply.body, reply.headers)
                await self._replays.finished(run, run.recorder.transcript())
            else:
                await self._replays.dropped(run)
        except ClientLeft:  # before anything was sent
            await self._replays.dropped(run)
            raise
        except MeshError as error:
            await self._failed(run, ask, error)
            raise
        finally:
            self._replays.abandoned(run)  # does nothing where it has ended
        return reply

    async def _failed(self, run: Run, ask: Ask, error: MeshError) -> None:
        if error.reason not in DISPATCHED:
            await self._replays.dropped(run)
            return
        told = failures.failure(error)
        body = TELLINGS[ask.dialect].error_body(told.status, told.error, ask.request_id)
        run.recorder.whole(told.status, body, told.headers)
        await self._replays.finished(run, run.recorder.transcript())
