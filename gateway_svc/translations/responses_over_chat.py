"""Clients of OpenAI's Responses at providers of chat completions: requests; the rest is in the modules beside. Pure.

Left out because they change no answer: labels of the request (`metadata`, `client_metadata`), the limit on calls of
tools that the provider runs, of which there are none here, and what to include of them. What is left out is told back
in the response all the same, as OpenAI does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gateway_svc.dialects import Request, chat
from gateway_svc.dialects.reading import TOOLS_MAX, Json, JsonObject, listed, member, text
from gateway_svc.dialects.responses import items_of
from gateway_svc.translations.refusing import refuse_others, untranslatable
from gateway_svc.translations.responses_over_chat_answers import LOGPROBS, response_of
from gateway_svc.translations.responses_over_chat_items import messages_of
from gateway_svc.translations.responses_over_chat_stream import ResponsesStream
from mesh.errors import invalid

PASSED = (
    *("model", "stream", "temperature", "top_p", "parallel_tool_calls", "service_tier"),
    *("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
)
LEFT_OUT = frozenset({"metadata", "client_metadata", "max_tool_calls", "include"})
READ = LEFT_OUT.union(
    *(PASSED, ("input", "instructions", "max_output_tokens", "reasoning", "text", "tools", "tool_choice")),
    ("top_logprobs", "stream_options"),
)
NEUTRAL: Mapping[str, tuple[Json, ...]] = {"store": (False,), "truncation": ("disabled",), "background": (False,)}
# What could be included: nothing is encrypted here, and of tools that the provider runs there are no results.
INCLUDABLE = frozenset(
    {
        *("reasoning.encrypted_content", LOGPROBS, "file_search_call.results", "web_search_call.results"),
        *("web_search_call.action.sources", "message.input_image.image_url", "computer_call_output.output.image_url"),
        "code_interpreter_call.outputs",
    }
)
INCLUDES_MAX = 64
FUNCTION = ("name", "description", "parameters", "strict")
TOOL_NEUTRAL: Mapping[str, tuple[Json, ...]] = {
    "async": (False,),
    "defer_loading": (False,),
    "allowed_callers": (["direct"],),
}
FORMAT = ("name", "schema", "description", "strict")
CHOICE_MODES = ("auto", "none", "required")


class ResponsesOverChat:
    """A client that speaks Responses, a provider that speaks chat completions."""

    def request(self, request: Request) -> Request:
        far = chat.read(_chat(request.document))
        return replace(far, max_tokens=request.max_tokens, usage_wanted=True, end_user=request.end_user)

    def answer(self, body: JsonObject, request: Request) -> JsonObject:
        return response_of(body, request)

    def stream(self, request: Request) -> ResponsesStream:
        return ResponsesStream(request)


def _chat(document: JsonObject) -> JsonObject:
    refuse_others(document, READ, NEUTRAL)
    refuse_others(member(document, "stream_options"), (), {"include_obfuscation": (False,)}, "stream_options.")
    cache = member(document, "prompt_cache_options")
    refuse_others(cache, ("mode", "ttl"), {"prewarm": (False,)}, "prompt_cache_options.")
    translated: JsonObject = {name: document[name] for name in PASSED if document.get(name) is not None}
    if "prompt_cache_options" in translated:
        translated["prompt_cache_options"] = {name: cache[name] for name in ("mode", "ttl") if name in cache}
    translated["messages"] = messages_of(items_of(document), text(document, "instructions"))
    if (limit := document.get("max_output_tokens")) is not None:
        translated["max_tokens"] = limit
    return translated | _tools(document) | _reasoning(document) | _text(document) | _logprobs(document)


def _logprobs(document: JsonObject) -> JsonObject:
    included = listed(document, "include", INCLUDES_MAX)
    for index, name in enumerate(included):
        if not isinstance(name, str) or name not in INCLUDABLE:
            raise untranslatable(f"include[{index}]")
    top = document.get("top_logprobs")
    if LOGPROBS not in included and not top:
        return {}
    return {"logprobs": True, "top_logprobs": top} if top else {"logprobs": True}


def _reasoning(document: JsonObject) -> JsonObject:
    """Return how hard to think; what is asked of summaries is how the answer shows what the model thought."""
    reasoning = member(document, "reasoning")
    neutral: dict[str, tuple[Json, ...]] = {"context": ("auto",), "mode": ("standard",)}
    refuse_others(reasoning, ("effort", "summary", "generate_summary"), neutral, "reasoning.")
    effort = reasoning.get("effort")
    return {} if effort is None else {"reasoning_effort": effort}


def _text(document: JsonObject) -> JsonObject:
    wanted = member(document, "text")
    refuse_others(wanted, ("format", "verbosity"), prefix="text.")
    translated: JsonObject = {}
    if (verbosity := wanted.get("verbosity")) is not None:
        translated["verbosity"] = verbosity
    match wanted.get("format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            translated["response_format"] = {"type": "json_object"}
        case {"type": "json_schema", "name": str(), "schema": dict(), **rest}:
            refuse_others(rest, FORMAT, prefix="text.format.")
            schema = _given(member(wanted, "format"), FORMAT)
            translated["response_format"] = {"type": "json_schema", "json_schema": schema}
        case _:
            raise untranslatable("text.format", "only text, json_object, and json_schema with a name and a schema")
    return translated


def _tools(document: JsonObject) -> JsonObject:
    tools = listed(document, "tools", TOOLS_MAX)
    choice = document.get("tool_choice")
    translated: JsonObject = {}
    match choice:
        case None:
            pass
        case str(mode) if mode in CHOICE_MODES:
            translated["tool_choice"] = mode
        case {"type": "function" | "custom" as kind, "name": str(name)}:
            translated["tool_choice"] = {"type": kind, kind: {"name": name}}
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(allowed)}:
            tools = _allowed(tools, allowed)
            translated["tool_choice"] = mode
        case _:
            raise untranslatable("tool_choice")
    if not tools:
        return {}  # a choice among no tools is refused by most servers, and says nothing
    return {"tools": [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)], **translated}


def _allowed(tools: list[Json], allowed: list[Json]) -> list[Json]:
    """Leave the tools that may be called: few servers know a list of those, and it says no more than this."""
    names = {_key(tool) for tool in allowed}
    if missing := names - {_key(tool) for tool in tools}:
        raise invalid("tool_choice.tools", f"must be among the tools, and {min(missing)} is not")
    return [tool for tool in tools if _key(tool) in names]


def _key(tool: Json) -> tuple[str, str]:
    match tool:
        case {"type": str(kind), "name": str(name)}:
            return kind, name
        case _:
            raise invalid("tool_choice.tools", "must be functions or custom tools, with their names")


def _tool(tool: Json, field: str) -> Json:
    match tool:
        case {"type": "function", "name": str()}:
            refuse_others(tool, ("type", *FUNCTION), TOOL_NEUTRAL, f"{field}.")
            return {"type": "function", "function": _given(tool, FUNCTION)}
        case {"type": "custom", "name": str()}:
            refuse_others(tool, ("type", "name", "description", "format"), TOOL_NEUTRAL, f"{field}.")
            return {"type": "custom", "custom": _given(tool, ("name", "description")) | _grammar(tool, field)}
        case {"type": "function" | "custom"}:
            raise invalid(f"{field}.name", "must be a text")
        case _:
            raise untranslatable(field)


def _grammar(tool: JsonObject, field: str) -> JsonObject:
    match tool.get("format"):
        case None:
            return {}
        case {"type": "text"}:
            return {"format": {"type": "text"}}
        case {"type": "grammar", "definition": str(definition), "syntax": str(syntax)}:
            return {"format": {"type": "grammar", "grammar": {"definition": definition, "syntax": syntax}}}
        case _:
            raise untranslatable(f"{field}.format")


def _given(owner: JsonObject, names: tuple[str, ...]) -> JsonObject:
    return {name: owner[name] for name in names if owner.get(name) is not None}
