"""Clients of Anthropic's Messages at providers of chat completions: requests; answers are in the module beside. Pure.

Left out because they change no answer: marks of what to cache, eager streaming of arguments, and whose request it is
where that has no room (`metadata`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import orjson

from gateway_svc.dialects import Request, chat
from gateway_svc.dialects.messages import messages_of
from gateway_svc.dialects.reading import Json, JsonObject, listed, member, parts_of
from gateway_svc.translations.messages_over_chat_answers import MessagesStream, message_of
from gateway_svc.translations.refusing import refuse_others, untranslatable
from mesh.errors import invalid

USER_CHARACTERS_MAX = 64  # OpenAI refuses a longer `user`
MEDIUM_BUDGET_TOKENS, HIGH_BUDGET_TOKENS = 4_096, 16_384
FORMAT_NAME = "answer"
PASSED = ("model", "max_tokens", "stream", "temperature", "top_p", "top_k")  # top_k: compatible servers know it
READ = frozenset(
    {*PASSED, "messages", "system", "stop_sequences", "metadata", "thinking", "output_config", "output_format"}
    | {"tools", "tool_choice", "cache_control", "service_tier", "speed"}
)
TEXT = frozenset({"type", "text", "cache_control"})
TOOL = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control", "eager_input_streaming"})
TOOL_USE = frozenset({"type", "id", "name", "input", "cache_control"})
TOOL_RESULT = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})
IMAGE = frozenset({"type", "source", "cache_control"})
DOCUMENT = frozenset({"type", "source", "title", "cache_control"})
DIRECT: tuple[Json, ...] = (["direct"], {"type": "direct"})
TOOL_NEUTRAL: dict[str, tuple[Json, ...]] = {
    "defer_loading": (False,),
    "allowed_callers": DIRECT,
    "input_examples": ([],),
}
IMAGES_FOLLOW = "Images that the tool returned:"


class MessagesOverChat:
    """A client that speaks Messages, a provider that speaks chat completions."""

    def request(self, request: Request) -> Request:
        far = chat.read(_chat(request.document))
        return replace(far, max_tokens=request.max_tokens, usage_wanted=True, end_user=request.end_user)

    def answer(self, body: JsonObject, request: Request) -> JsonObject:
        return message_of(body, request)

    def stream(self, request: Request) -> MessagesStream:
        return MessagesStream(request)


def _chat(document: JsonObject) -> JsonObject:
    refuse_others(document, READ)
    turns = messages_of(document)
    if turns[-1].get("role") == "assistant":
        raise untranslatable(f"messages[{len(turns) - 1}]", "this model's provider can't continue a begun answer")
    messages: list[Json] = _system(document.get("system"), "system")
    for index, message in enumerate(turns):
        messages.extend(_turn(message, f"messages[{index}]"))
    translated: JsonObject = {name: document[name] for name in PASSED if document.get(name) is not None}
    translated["messages"] = messages
    if stops := listed(document, "stop_sequences", chat.MESSAGES_MAX):
        translated["stop"] = stops
    if isinstance(user := member(document, "metadata").get("user_id"), str) and user:
        fits = len(user) <= USER_CHARACTERS_MAX
        translated["user"] = user if fits else hashlib.sha256(user.encode(errors="replace")).hexdigest()
    match document.get("service_tier"):
        case None | "auto":
            pass
        case "standard_only":
            translated["service_tier"] = "default"
        case _:
            raise untranslatable("service_tier")
    return translated | _tools(document) | _effort(document) | _format(document)


def _system(content: Json, field: str) -> list[Json]:
    if content is None:
        return []
    return [{"role": "system", "content": "\n\n".join(_texts(content, field))}]


def _texts(content: Json, field: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    for index, block in enumerate(parts_of(content)):
        match block:
            case {"type": "text", "text": str(text)}:
                refuse_others(block, TEXT, {"citations": ([],)}, f"{field}[{index}].")
                texts.append(text)
            case _:
                raise untranslatable(f"{field}[{index}]", "only text is taken here")
    return texts


def _turn(message: JsonObject, field: str) -> list[Json]:
    refuse_others(message, ("role", "content"), prefix=f"{field}.")
    content = message.get("content")
    match message.get("role"):
        case "system":
            return _system(content, f"{field}.content")
        case "assistant":
            return [_assistant(content, f"{field}.content")]
        case _ if isinstance(content, str):
            return [{"role": "user", "content": content}]
        case _:
            return _user(parts_of(content), f"{field}.content")


def _assistant(content: Json, field: str) -> JsonObject:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    calls: list[Json] = []
    for index, block in enumerate(parts_of(content)):
        place = f"{field}[{index}]"
        match block:
            case {"type": "tool_use", "id": str(call_id), "name": str(name)}:
                refuse_others(block, TOOL_USE, {"caller": DIRECT}, f"{place}.")
                function: JsonObject = {"name": name, "arguments": orjson.dumps(block.get("input") or {}).decode()}
                calls.append({"id": call_id, "type": "function", "function": function})
            case {"type": "thinking"} if not block.get("signature"):
                pass  # ours: what a chat model thought before is not for it to read again
            case {"type": "thinking" | "redacted_thinking"}:
                raise untranslatable(place, "only the vendor that signed this thinking can read it")
            case _:
                texts.extend(_texts([block], field))
    said: JsonObject = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    return {**said, "tool_calls": calls} if calls else said


def _user(blocks: Iterable[Json], field: str) -> list[Json]:
    """Give the results of tools first, as they must follow the calls, then what the user says."""
    results: list[Json] = []
    images: list[Json] = []
    said: list[Json] = []
    for index, block in enumerate(blocks):
        place = f"{field}[{index}]"
        if isinstance(block, dict) and block.get("type") == "tool_result":
            result, shown = _result(block, place)
            results.append(result)
            images.extend(shown)
        else:
            said.append(_part(block, place))
    if images:
        said = [{"type": "text", "text": IMAGES_FOLLOW}, *images, *said]  # results of tools are texts alone
    return [*results, {"role": "user", "content": said}] if said or not results else results


def _result(block: JsonObject, field: str) -> tuple[Json, list[Json]]:
    refuse_others(block, TOOL_RESULT, prefix=f"{field}.")
    call_id, content = block.get("tool_use_id"), block.get("content")
    if not isinstance(call_id, str):
        raise invalid(f"{field}.tool_use_id", "must be a text")
    texts: list[str] = []
    images: list[Json] = []
    for index, part in enumerate(parts_of(content)):
        if isinstance(part, dict) and part.get("type") == "image":
            images.append(_image(part, f"{field}.content[{index}]"))
        else:
            texts.extend(_texts([part], f"{field}.content"))
    told = content if isinstance(content, str) else "\n".join(texts)
    if block.get("is_error") is True:
        told = f"Error: {told}"
    return {"role": "tool", "tool_call_id": call_id, "content": told}, images


def _part(block: Json, field: str) -> Json:
    match block:
        case {"type": "text", "text": str(text)}:
            refuse_others(block, TEXT, {"citations": ([],)}, f"{field}.")
            return {"type": "text", "text": text}
        case {"type": "image"}:
            return _image(block, field)
        case {"type": "document"}:
            return _document(block, field)
        case _:
            raise untranslatable(field)


def _image(block: JsonObject, field: str) -> Json:
    refuse_others(block, IMAGE, {"transformations": ({}, {"oversized_image": "downsize"})}, f"{field}.")
    match block.get("source"):
        case {"type": "url", "url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
        case _:
            raise untranslatable(f"{field}.source")


def _document(block: JsonObject, field: str) -> Json:
    refuse_others(block, DOCUMENT, {"citations": ({"enabled": False}, {})}, f"{field}.")
    title = block.get("title")
    match block.get("source"):
        case {"type": "base64", "media_type": "application/pdf", "data": str(data)}:
            name = title if isinstance(title, str) and title else "document.pdf"
            return {"type": "file", "file": {"filename": name, "file_data": f"data:application/pdf;base64,{data}"}}
        case {"type": "text", "data": str(data)}:
            return {"type": "text", "text": f"{title}\n\n{data}" if isinstance(title, str) and title else data}
        case _:
            raise untranslatable(f"{field}.source")


def _tools(document: JsonObject) -> JsonObject:
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(parts_of(document.get("tools")))]
    if not tools:
        return {}
    translated: JsonObject = {"tools": tools}
    choice = member(document, "tool_choice")
    match choice:
        case {"type": "auto" | "none" as kind}:
            translated["tool_choice"] = kind
        case {"type": "any"}:
            translated["tool_choice"] = "required"
        case {"type": "tool", "name": str(name)}:
            translated["tool_choice"] = {"type": "function", "function": {"name": name}}
        case {"type": _}:
            raise invalid("tool_choice", "must be auto, any, none, or a tool with its name")
        case _:
            pass
    if choice.get("disable_parallel_tool_use") is True:
        translated["parallel_tool_calls"] = False
    return translated


def _tool(tool: Json, field: str) -> Json:
    match tool:
        case {"name": str(name), "input_schema": dict(schema)}:
            refuse_others(tool, TOOL, TOOL_NEUTRAL, f"{field}.")
            function: JsonObject = {"name": name, "parameters": schema}
            function |= {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
            return {"type": "function", "function": function}
        case {"type": str(kind)} if kind != "custom":
            raise untranslatable(field, "only models of this tool's vendor know it")
        case _:
            raise invalid(field, "must have a name and an input_schema")


def _effort(document: JsonObject) -> JsonObject:
    """Return how hard to think: as the client says, else as its budget lets one guess."""
    if (effort := member(document, "output_config").get("effort")) is not None:
        return {"reasoning_effort": effort}
    match document.get("thinking"):
        case {"type": "enabled", "budget_tokens": int(budget)}:
            guess = "low" if budget < MEDIUM_BUDGET_TOKENS else "medium" if budget < HIGH_BUDGET_TOKENS else "high"
            return {"reasoning_effort": guess}
        case None | {"type": "adaptive" | "disabled"}:
            return {}  # models of this dialect think or don't by their nature, and refuse efforts that they don't know
        case _:
            raise untranslatable("thinking")


def _format(document: JsonObject) -> JsonObject:
    output = member(document, "output_config")
    refuse_others(output, ("effort", "format"), prefix="output_config.")
    wanted = output.get("format") or document.get("output_format")
    match wanted:
        case None:
            return {}
        case {"type": "json_schema", "schema": dict(schema)}:
            named: JsonObject = {"name": FORMAT_NAME, "schema": schema, "strict": True}  # as Anthropic's always is
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case _:
            raise untranslatable("output_config.format", "only json_schema with a schema is taken")
