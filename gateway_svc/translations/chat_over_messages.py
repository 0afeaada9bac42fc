"""Clients of chat completions at providers of Anthropic's Messages: requests; answers are in the module beside. Pure.

Left out because they change no answer: hints about caches, labels for the vendor's own lists (`metadata`), and what a
model thought before, which has lost its signature on the way. Temperatures above 1 are 1, as in Anthropic's own layer
for OpenAI's clients. (docs.anthropic.com: Messages, OpenAI SDK compatibility.)
"""

from __future__ import annotations

import re
from dataclasses import replace

import orjson

from gateway_svc.dialects import Request, messages
from gateway_svc.dialects.chat import messages_of
from gateway_svc.dialects.reading import Json, JsonObject, member, parts_of
from gateway_svc.translations.chat_over_messages_answers import ChatStream, completion_of
from gateway_svc.translations.refusing import refuse_others, untranslatable
from mesh.errors import invalid

DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,(.+)", re.DOTALL)
PDF = "application/pdf"
JSON_INSTRUCTION = "Answer with one JSON object and nothing else."
TEMPERATURE_MAX = 1.0
SYSTEM_ROLES = ("system", "developer")
PASSED = ("model", "stream", "temperature", "top_p", "top_k")
HINTS = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"})
READ = frozenset(
    {*PASSED, *HINTS, "messages", "max_tokens", "max_completion_tokens", "stream_options", "stop", "user"}
    | {"safety_identifier", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"}
    | {"service_tier"}
)
NEUTRAL: dict[str, tuple[Json, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "store": (False,),
    "verbosity": ("medium",),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),  # of no function
}
MESSAGE = frozenset({"role", "content", "refusal", "tool_calls", "tool_call_id", "reasoning_content"})
MESSAGE_NEUTRAL: dict[str, tuple[Json, ...]] = {"annotations": ([],), "name": ("",)}
FUNCTION = frozenset({"name", "description", "parameters", "strict"})
EFFORTS = {"minimal": "low"}  # the others have the same names


class ChatOverMessages:
    """A client that speaks chat completions, a provider that speaks Messages."""

    def request(self, request: Request) -> Request:
        far = messages.read(_messages(request))
        return replace(far, max_tokens=request.max_tokens, end_user=request.end_user)

    def answer(self, body: JsonObject, request: Request) -> JsonObject:
        return completion_of(body)

    def stream(self, request: Request) -> ChatStream:
        return ChatStream(usage_wanted=request.usage_wanted)


def _messages(request: Request) -> JsonObject:
    document = request.document
    refuse_others(document, READ, NEUTRAL)
    translated: JsonObject = {name: document[name] for name in PASSED if document.get(name) is not None}
    translated["messages"] = _turns(document)
    if isinstance(temperature := translated.get("temperature"), int | float):
        translated["temperature"] = min(temperature, TEMPERATURE_MAX)
    if (stop := document.get("stop")) is not None:
        translated["stop_sequences"] = stop if isinstance(stop, list) else [stop]
    if isinstance(user := document.get("safety_identifier") or document.get("user"), str):
        translated["metadata"] = {"user_id": user}
    match document.get("service_tier"):
        case None | "auto":
            pass
        case "default":
            translated["service_tier"] = "standard_only"
        case _:
            raise untranslatable("service_tier")
    translated |= _system(document) | _tools(document) | _effort(document)
    if (output_format := _format(document)) is not None:
        translated["output_config"] = {**member(translated, "output_config"), "format": output_format}
    return translated


def _system(document: JsonObject) -> JsonObject:
    texts = [
        text
        for index, message in enumerate(messages_of(document))
        if message.get("role") in SYSTEM_ROLES
        for text in _texts(message.get("content"), f"messages[{index}].content")
    ]
    if member(document, "response_format").get("type") == "json_object":
        texts.append(JSON_INSTRUCTION)
    return {"system": "\n\n".join(texts)} if texts else {}


def _turns(document: JsonObject) -> list[Json]:
    """Give user and assistant in turn: what follows in one role becomes one message, as tool results must."""
    turns: list[tuple[str, list[Json]]] = []
    for index, message in enumerate(messages_of(document)):
        field = f"messages[{index}]"
        role = message.get("role")
        known = MESSAGE | {"name"} if role == "tool" else MESSAGE  # the call's id says which tool it was
        refuse_others(message, known, MESSAGE_NEUTRAL, f"{field}.")
        if role in SYSTEM_ROLES:
            continue
        speaker = "assistant" if role == "assistant" else "user"
        blocks = _blocks(message, field)
        if turns and turns[-1][0] == speaker:
            turns[-1][1].extend(blocks)
        elif blocks:
            turns.append((speaker, blocks))
    return [{"role": speaker, "content": blocks} for speaker, blocks in turns]


def _blocks(message: JsonObject, field: str) -> list[Json]:
    content = message.get("content")
    match message.get("role"):
        case "user":
            return _parts(content, f"{field}.content")
        case "assistant":
            texts = [*_texts(content, f"{field}.content"), *_texts(message.get("refusal"), f"{field}.refusal")]
            said: list[Json] = [{"type": "text", "text": text} for text in texts if text.strip()]
            return said + _tool_uses(message.get("tool_calls"), f"{field}.tool_calls")
        case "tool":
            result = [part for part in _parts(content, f"{field}.content") if part != {"type": "text", "text": ""}]
            return [{"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": result}]
        case _:
            raise invalid(f"{field}.role", "must be system, developer, user, assistant or tool")


def _texts(content: Json, field: str) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    for index, part in enumerate(parts_of(content)):
        match part:
            case {"type": "text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
                texts.append(text)
            case _:
                raise untranslatable(f"{field}[{index}]", "only text is taken here")
    return texts


def _parts(content: Json, field: str) -> list[Json]:
    if not isinstance(content, list):
        return [{"type": "text", "text": text} for text in _texts(content, field)]
    return [_part(part, f"{field}[{index}]") for index, part in enumerate(content)]


def _part(part: Json, field: str) -> Json:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url), **rest}}:
            if rest.get("detail") == "low":
                raise untranslatable(f"{field}.image_url.detail", "this provider looks at images as they are")
            return {"type": "image", "source": _source(url)}
        case {"type": "file", "file": {"file_data": str(url), **rest}} if _media_type(url) == PDF:
            document: JsonObject = {"type": "document", "source": _source(url)}
            if isinstance(name := rest.get("filename"), str) and name:
                document["title"] = name
            return document
        case _:
            raise untranslatable(field)


def _media_type(url: str) -> str:
    inline = DATA_URL.fullmatch(url)
    return inline[1] if inline is not None else ""


def _source(url: str) -> JsonObject:
    inline = DATA_URL.fullmatch(url)
    if inline is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": inline[1], "data": inline[2]}


def _tool_uses(calls: Json, field: str) -> list[Json]:
    uses: list[Json] = []
    for index, call in enumerate(parts_of(calls)):
        match call:
            case {"id": str(call_id), "function": {"name": str(name), "arguments": str(arguments)}}:
                place = f"{field}[{index}].function.arguments"
                uses.append({"type": "tool_use", "id": call_id, "name": name, "input": _input(arguments, place)})
            case _:
                raise invalid(f"{field}[{index}]", "must have an id, and a function with name and arguments")
    return uses


def _input(arguments: str, field: str) -> Json:
    try:
        value: Json = orjson.loads(arguments.strip() or "{}")
    except orjson.JSONDecodeError:
        raise invalid(field, "must be JSON") from None
    if not isinstance(value, dict):
        raise invalid(field, "must be a JSON object")
    return value


def _tools(document: JsonObject) -> JsonObject:
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(parts_of(document.get("tools")))]
    choice = _tool_choice(document.get("tool_choice"))
    if not tools and choice["type"] in ("any", "tool"):
        raise invalid("tool_choice", "needs tools to choose from")
    if not tools:
        return {}
    if document.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tools": tools, "tool_choice": choice}


def _tool(tool: Json, field: str) -> Json:
    match tool:
        case {"type": "function", "function": {"name": str(name)} as function}:
            refuse_others(function, FUNCTION, prefix=f"{field}.function.")
            translated: JsonObject = {
                "name": name,
                "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
            }
            translated |= {key: function[key] for key in ("description", "strict") if function.get(key) is not None}
            return translated
        case {"type": "custom"}:
            raise untranslatable(field, "this provider's tools take JSON alone")
        case _:
            raise invalid(field, "must be a function with a name")


def _tool_choice(choice: Json) -> JsonObject:
    match choice:
        case None | "auto":
            return {"type": "auto"}
        case "none":
            return {"type": "none"}
        case "required":
            return {"type": "any"}
        case {"function": {"name": str(name)}}:
            return {"type": "tool", "name": name}
        case {"type": "allowed_tools" | "custom"}:
            raise untranslatable("tool_choice")
        case _:
            raise invalid("tool_choice", "must be none, auto, required or a function")


def _effort(document: JsonObject) -> JsonObject:
    """Return how to think; models that know budgets alone get one when the limit is known."""
    match document.get("reasoning_effort"):
        case None:
            return {}
        case "none":
            return {"thinking": {"type": "disabled"}}
        case str(effort):
            thinking: JsonObject = {"type": "adaptive", "display": "summarized"}  # else the newest models show nothing
            return {"thinking": thinking, "output_config": {"effort": EFFORTS.get(effort, effort)}}
        case _:
            raise invalid("reasoning_effort", "must be a text")


def _format(document: JsonObject) -> JsonObject | None:
    match document.get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": dict(schema), **rest}}:
            described: JsonObject = {} if rest.get("description") is None else {"description": rest["description"]}
            return {"type": "json_schema", "schema": {**described, **schema}}
        case None | {"type": "text" | "json_object"}:
            return None
        case _:
            raise invalid("response_format", "must be text, json_object or json_schema with a schema")
