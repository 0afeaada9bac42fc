"""A stream of chat completion chunks as one of OpenAI's Responses (OpenAI's reference: streaming events). Pure.

Items may be open side by side, as parallel calls are; each is told as added, in deltas, as done, and in the response
that the last event holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from gateway_svc import sse
from gateway_svc.dialects import Request
from gateway_svc.dialects.reading import Json, JsonObject, parts_of
from gateway_svc.translations import responses_over_chat_answers as answers
from gateway_svc.translations.arguments import Arguments, Places
from gateway_svc.translations.provided import event_of, index_of

CALLS_MAX = 1_024
WRITTEN_CHARACTERS_MAX = 16 * 1024 * 1024  # all of an answer is told once more at its end


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of text is told: the event, the member that holds it whole, and the part that it is."""

    event: str
    member: str
    part: str = ""
    place: str = "content_index"


TEXT = _Kind("response.output_text", "text", "response.content_part")
REFUSAL = _Kind("response.refusal", "refusal", "response.content_part")
THOUGHT = _Kind("response.reasoning_text", "text", "response.content_part")
SUMMARY = _Kind("response.reasoning_summary_text", "text", "response.reasoning_summary_part", "summary_index")
ARGUMENTS = _Kind("response.function_call_arguments", "arguments")
CUSTOM_INPUT = _Kind("response.custom_tool_call_input", "input")


@dataclass(slots=True)
class _Part:
    """A text that is being written; `head` is how each of its deltas begins."""

    kind: _Kind
    where: JsonObject
    head: bytes
    written: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)

    def text(self) -> str:
        return "".join(self.written)

    def whole(self) -> JsonObject:
        """Return it as a part of its item."""
        match self.kind:
            case _ if self.kind is TEXT:
                return answers.text_part(self.text(), self.logprobs)
            case _ if self.kind is REFUSAL:
                return answers.refusal_part(self.text())
            case _:
                kind = "summary_text" if self.kind is SUMMARY else "reasoning_text"
                return {"type": kind, "text": self.text()}


@dataclass(slots=True)
class _Item:
    """One item of the output; a call has its own id."""

    place: int
    item_id: str
    parts: list[_Part] = field(default_factory=list)
    arguments: Arguments = field(default_factory=Arguments)  # followed as they are written
    call_id: str = ""
    name: str = ""
    closed: bool = False

    def complete(self) -> bool:
        """Return whether a call's arguments are an object, to which nothing can be added."""
        return self.parts[0].kind is ARGUMENTS and self.arguments.complete()

    def whole(self, request: Request) -> JsonObject:
        """Return it as it stands in the response."""
        kind, text = self.parts[0].kind, self.parts[0].text()
        if kind in (ARGUMENTS, CUSTOM_INPUT):
            return answers.call(self.item_id, self.call_id, self.name, text, custom=kind is CUSTOM_INPUT)
        if kind in (THOUGHT, SUMMARY):
            return answers.reasoning(self.item_id, text, request)
        return answers.message(self.item_id, [part.whole() for part in self.parts])


class ResponsesStream:
    """One stream, from response.created to the event that says how it ended."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._thinking = SUMMARY if answers.summarized(request) else THOUGHT
        self._response: JsonObject = {}
        self._told_id = ""
        self._events: list[bytes] = []  # told since the last call
        self._sequence = 0
        self._written_characters = 0
        self._said: _Item | None = None  # the thought or message that is open
        self._calls: list[_Item] = []
        self._called = Places()
        self._output: dict[int, JsonObject] = {}  # the items that are done, by their place
        self._places = 0
        self._finish: Json = None
        self._usage: Json = None

    def take(self, events: bytes) -> bytes:
        self._read(events)
        return b"".join(self._drain())

    def end(self, kept: Sequence[bytes]) -> list[bytes]:
        for events in kept:
            self._read(events)
        self._start({})
        status, details = answers.ending(self._finish)
        waiting = [*([self._said] if self._said else []), *(call for call in self._calls if not call.closed)]
        for item in sorted(waiting, key=lambda item: item.place):
            self._close(item, status if item.place == self._places - 1 else "completed")
        output = [self._output[place] for place in sorted(self._output)]
        final = {**self._response, "status": status, "incomplete_details": details, "output": list[Json](output)}
        self._tell(f"response.{status}", {"response": {**final, "usage": answers.usage_of(self._usage)}})
        return self._drain()

    def _read(self, events: bytes) -> None:
        for event in sse.events_of(events):
            data = event[6:] if event.startswith(b"data: ") and b"\n" not in event else sse.data_of(event)
            if data:
                self._take(event_of(data))

    def _take(self, chunk: Json) -> None:
        match chunk:
            case {"choices": [dict(choice), *_]}:
                self._usage = chunk.get("usage") or self._usage
                self._start(chunk)
                if isinstance(delta := choice.get("delta"), dict):
                    self._delta(delta, choice)
                if (finish := choice.get("finish_reason")) is not None:
                    self._finish = finish
            case {"choices": []}:
                self._usage = chunk.get("usage") or self._usage
            case _:
                raise ValueError("the event is no chunk")

    def _start(self, chunk: JsonObject) -> None:
        if self._response:
            return
        self._told_id = answers.told_id(chunk)
        self._response = answers.response(self._request, chunk, "in_progress")
        self._tell("response.created", {"response": self._response})
        self._tell("response.in_progress", {"response": self._response})

    def _delta(self, delta: JsonObject, choice: JsonObject) -> None:
        if thought := answers.thought_of(delta):
            self._write(self._saying(self._thinking), thought)
        if text := answers.content_of(delta):
            logprobs = answers.logprobs_of(choice) if choice.get("logprobs") else []
            self._write(self._saying(TEXT), text, logprobs)
        if refusal := answers.said_text(delta, "refusal"):
            self._write(self._saying(REFUSAL), refusal)
        for call in parts_of(delta.get("tool_calls")):
            if isinstance(call, dict):
                self._call(call)

    def _saying(self, kind: _Kind) -> _Part:
        """Return the part that goes on in this kind, of the item that is open or of the next one."""
        item = self._said
        if item is None or (item.parts[0].kind is self._thinking) is not (kind is self._thinking):
            self._close_others()
            thinks = kind is self._thinking
            item = self._said = self._item("rs" if thinks else "msg")
            opening = {"content": []} if kind is not SUMMARY else {}
            shape = {"type": "reasoning", "summary": []} if thinks else {"type": "message", "role": "assistant"}
            told: JsonObject = {"id": item.item_id, **shape, **opening, "status": "in_progress"}
            self._tell("response.output_item.added", {"output_index": item.place, "item": told})
        for part in item.parts:
            if part.kind is kind:
                return part
        return self._part(item, kind)

    def _call(self, delta: JsonObject) -> None:
        call_id, name, arguments, custom = answers.called(delta)
        index = index_of(delta)
        place = self._called.of(index, call_id)
        if place is None:
            if len(self._calls) >= CALLS_MAX:
                raise ValueError("the stream has too many calls")
            self._close_others()
            item = self._item("ctc" if custom else "fc")
            item.name = name
            self._called.add(len(self._calls), index, call_id)
            item.call_id = call_id or f"call_{self._told_id}_{len(self._calls)}"
            self._calls.append(item)
            opening = answers.call(item.item_id, item.call_id, name, "", custom=custom)
            told = answers.finished(opening, "in_progress")
            self._tell("response.output_item.added", {"output_index": item.place, "item": told})
            self._part(item, CUSTOM_INPUT if custom else ARGUMENTS)
        else:
            item = self._calls[place]
        if item.closed:
            if arguments.strip():
                raise ValueError("the stream adds to a call that was complete")
        elif arguments:
            item.arguments.add(arguments)
            self._write(item.parts[0], arguments)

    def _item(self, prefix: str) -> _Item:
        place = self._places
        self._places += 1
        return _Item(place, f"{prefix}_{self._told_id}_{place}")

    def _part(self, item: _Item, kind: _Kind) -> _Part:
        where: JsonObject = {"item_id": item.item_id, "output_index": item.place}
        if kind.part:
            where[kind.place] = len(item.parts)
        name = f"{kind.event}.delta"
        told = orjson.dumps({"type": name, **where})[:-1]
        part = _Part(kind, where, b"event: " + name.encode() + b"\ndata: " + told + b',"sequence_number":')
        item.parts.append(part)
        if kind.part:
            self._tell(f"{kind.part}.added", {**where, "part": part.whole()})
        return part

    def _write(self, part: _Part, text: str, logprobs: Sequence[Json] = ()) -> None:
        self._written_characters += len(text)
        if self._written_characters > WRITTEN_CHARACTERS_MAX:
            raise ValueError("the stream is longer than any answer")
        part.written.append(text)
        tail = b"}\n\n"
        if part.kind is TEXT:
            part.logprobs.extend(logprobs)
            tail = b',"logprobs":' + orjson.dumps(logprobs) + tail if logprobs else b',"logprobs":[]' + tail
        self._events.append(part.head + b'%d,"delta":' % self._sequence + orjson.dumps(text) + tail)
        self._sequence += 1

    def _close_others(self) -> None:
        """End what no more can come of: the message or thought, and the last call if its arguments are whole."""
        if self._said is not None:
            self._close(self._said, "completed")
        for call in self._calls[-1:]:
            if not call.closed and call.complete():
                self._close(call, "completed")

    def _close(self, item: _Item, status: str) -> None:
        for part in item.parts:
            told: JsonObject = {**part.where, part.kind.member: part.text()}
            if part.kind is TEXT:
                told["logprobs"] = part.logprobs
            self._tell(f"{part.kind.event}.done", told)
            if part.kind.part:
                self._tell(f"{part.kind.part}.done", {**part.where, "part": part.whole()})
        whole = answers.finished(item.whole(self._request), status)
        self._tell("response.output_item.done", {"output_index": item.place, "item": whole})
        self._output[item.place] = whole
        item.closed = True
        if item is self._said:
            self._said = None

    def _tell(self, kind: str, members: JsonObject) -> None:
        told = orjson.dumps({"type": kind, "sequence_number": self._sequence, **members})
        self._sequence += 1
        self._events.append(b"event: " + kind.encode() + b"\n" + sse.event(told))

    def _drain(self) -> list[bytes]:
        told, self._events = self._events, []
        return told
