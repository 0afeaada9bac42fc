"""Items of OpenAI's Responses as messages of a chat: what one side says in a row is one message there. Pure.

Left out because they change no answer: ids, states and phases of items, which chat messages don't have, marks of what
to cache, and probabilities of what was said before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gateway_svc.dialects.reading import Json, JsonObject, parts_of
from gateway_svc.dialects.responses import kind_of
from gateway_svc.translations.messages_over_chat import IMAGES_FOLLOW
from gateway_svc.translations.refusing import refuse_others, untranslatable
from mesh.errors import invalid

BETWEEN = "\n\n"
MESSAGE = frozenset({"type", "role", "content", "id", "status", "phase"})
CALL = frozenset({"type", "id", "call_id", "name", "arguments", "input", "status"})
OUTPUT = frozenset({"type", "id", "call_id", "name", "output", "status"})
CALL_NEUTRAL: Mapping[str, tuple[Json, ...]] = {"async": (False,), "caller": ({"type": "direct"},), "namespace": ("",)}
TEXT = frozenset({"type", "text", "logprobs", "prompt_cache_breakpoint"})
TEXT_NEUTRAL: Mapping[str, tuple[Json, ...]] = {"annotations": ([],)}
IMAGE = frozenset({"type", "image_url", "detail", "prompt_cache_breakpoint"})
FILE = frozenset({"type", "file_data", "filename", "prompt_cache_breakpoint"})


@dataclass(slots=True)
class Turn:
    """What one side says in a row, in pieces until it has ended."""

    role: str
    texts: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    calls: list[Json] = field(default_factory=list)
    silent: bool = True  # no item of it was a message

    def whole(self) -> JsonObject:
        """Return it as one message."""
        said = BETWEEN.join(self.texts) if self.texts else None
        message: JsonObject = {"role": self.role, "content": said}
        if self.refusals:
            message["refusal"] = BETWEEN.join(self.refusals)
        elif said is None and not self.silent:
            message["content"] = ""
        return {**message, "tool_calls": self.calls} if self.calls else message


class Conversation:
    """Messages as they come about; images that tools returned follow all the results of one turn."""

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self._images: list[Json] = []
        self._turn: Turn | None = None

    def system(self, text: str) -> None:
        """Add to a system's message: one that follows on another is one with it, as most templates take one alone."""
        self._turn_of("system").texts.append(text)

    def user(self, content: Json) -> None:
        """Add a user's message."""
        self._end_turn()
        self._show_images()
        self._messages.append({"role": "user", "content": content})

    def assistant(self) -> Turn:
        """Return the assistant's turn that is being said."""
        return self._turn_of("assistant")

    def result(self, call_id: str, content: str, images: list[Json]) -> None:
        """Add what a tool returned."""
        self._end_turn()
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        self._images.extend(images)

    def end(self) -> list[Json]:
        """Return all messages."""
        self._end_turn()
        self._show_images()
        return self._messages

    def _turn_of(self, role: str) -> Turn:
        if self._turn is None or self._turn.role != role:
            self._end_turn()
            self._show_images()
            self._turn = Turn(role)
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn.whole())
            self._turn = None

    def _show_images(self) -> None:
        """Show what images the tools returned: their results are texts alone."""
        if self._images:
            shown: list[Json] = [{"type": "text", "text": IMAGES_FOLLOW}, *self._images]
            self._messages.append({"role": "user", "content": shown})
            self._images = []


def messages_of(items: Iterable[JsonObject], instructions: str) -> list[Json]:
    """Translate a request's items, after what its instructions say."""
    conversation = Conversation()
    if instructions:
        conversation.system(instructions)
    for index, item in enumerate(items):
        _add(conversation, item, f"input[{index}]")
    return conversation.end()


def _add(conversation: Conversation, item: JsonObject, field: str) -> None:
    match kind_of(item):
        case "message":
            _message(conversation, item, field)
        case "function_call":
            called: JsonObject = {"name": _required(item, "name", field)}
            called["arguments"] = _required(item, "arguments", field)
            _call(conversation, item, field, {"type": "function", "function": called})
        case "custom_tool_call":
            called = {"name": _required(item, "name", field), "input": _required(item, "input", field)}
            _call(conversation, item, field, {"type": "custom", "custom": called})
        case "function_call_output" | "custom_tool_call_output":
            refuse_others(item, OUTPUT, CALL_NEUTRAL, f"{field}.")
            texts, images = _output(item.get("output"), f"{field}.output")
            conversation.result(_required(item, "call_id", field), texts, images)
        case "reasoning":
            if item.get("encrypted_content"):  # never ours: what chat models think is told in the clear
                raise untranslatable(f"{field}.encrypted_content", "only the vendor that encrypted this can read it")
        case _:
            raise untranslatable(field)


def _message(conversation: Conversation, item: JsonObject, field: str) -> None:
    refuse_others(item, MESSAGE, prefix=f"{field}.")
    content, place = item.get("content"), f"{field}.content"
    if not isinstance(content, str | list):
        raise invalid(place, "must be a text or a list of parts")
    match item.get("role"):
        case "user":
            said = content if isinstance(content, str) else _parts(content, place)
            conversation.user(said)
        case "system" | "developer":  # few servers know the second, and those that do take the first for it
            conversation.system(BETWEEN.join(_texts(content, place)))
        case "assistant":
            _said(conversation.assistant(), content, place)
        case _:
            raise invalid(f"{field}.role", "must be user, assistant, system or developer")


def _said(turn: Turn, content: Json, field: str) -> None:
    texts: list[str] = [content] if isinstance(content, str) else []
    refusals: list[str] = []
    for index, part in enumerate(parts_of(content)):
        match part:
            case {"type": "refusal", "refusal": str(refusal)}:
                refuse_others(part, ("type", "refusal"), prefix=f"{field}[{index}].")
                refusals.append(refusal)
            case _:
                texts.append(_text(part, f"{field}[{index}]"))
    turn.silent = False
    turn.texts.extend(filter(None, ["".join(texts)]))
    turn.refusals.extend(filter(None, ["".join(refusals)]))


def _call(conversation: Conversation, item: JsonObject, field: str, call: JsonObject) -> None:
    refuse_others(item, CALL, CALL_NEUTRAL, f"{field}.")
    conversation.assistant().calls.append({"id": _required(item, "call_id", field), **call})


def _output(output: Json, field: str) -> tuple[str, list[Json]]:
    if isinstance(output, str):
        return output, []
    if not isinstance(output, list):
        raise invalid(field, "must be a text or a list of parts")
    texts: list[str] = []
    images: list[Json] = []
    for index, part in enumerate(output):
        if isinstance(part, dict) and part.get("type") == "input_image":
            images.append(_image(part, f"{field}[{index}]"))
        else:
            texts.append(_text(part, f"{field}[{index}]"))
    return "\n".join(texts), images


def _parts(content: list[Json], field: str) -> list[Json]:
    return [_part(part, f"{field}[{index}]") for index, part in enumerate(content)]


def _part(part: Json, field: str) -> Json:
    match part:
        case {"type": "input_image"}:
            return _image(part, field)
        case {"type": "input_file", "file_data": str()}:
            refuse_others(part, FILE, {"detail": ("auto",)}, f"{field}.")
            file: JsonObject = {name: part[name] for name in ("file_data", "filename") if part.get(name) is not None}
            return {"type": "file", "file": file}
        case {"type": "input_file"}:
            raise untranslatable(field, "only files whose data is told are taken here")
        case _:
            return {"type": "text", "text": _text(part, field)}


def _image(part: JsonObject, field: str) -> Json:
    refuse_others(part, IMAGE, prefix=f"{field}.")
    image: JsonObject = {"url": _required(part, "image_url", field)}
    if (detail := part.get("detail")) not in (None, "auto"):
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def _texts(content: Json, field: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [_text(part, f"{field}[{index}]") for index, part in enumerate(parts_of(content))]


def _text(part: Json, field: str) -> str:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            refuse_others(part, TEXT, TEXT_NEUTRAL, f"{field}.")
            return text
        case _:
            raise untranslatable(field, "only text is taken here")


def _required(item: JsonObject, name: str, field: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{field}.{name}", "must be a text")
    return value
