"""Chat completions as OpenAI's Responses: the response that tells all of one, and what its items look like. Pure."""

from __future__ import annotations

import re

from gateway_svc.dialects import Request
from gateway_svc.dialects.reading import Json, JsonObject, member, parts_of
from gateway_svc.translations.provided import answer_of
from gateway_svc.usage import of_openai

LOGPROBS = "message.output_text.logprobs"
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
FOREIGN_ID = re.compile(r"[^A-Za-z0-9_-]")
ID_CHARACTERS_MAX = 40  # OpenAI takes back ids of 64 at most, and a prefix and a place are added
# What OpenAI tells back of a request, and what it says where the request says nothing.
TOLD_BACK: JsonObject = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "safety_identifier": None,
    "service_tier": None,
    "temperature": None,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


def response_of(body: JsonObject, request: Request) -> JsonObject:
    """Translate a whole answer; ValueError for what is none."""
    match answer_of(body).get("choices"):
        case [{"message": dict(said)} as choice, *_]:
            pass
        case _:
            raise ValueError("the answer has no choice")
    status, details = ending(choice.get("finish_reason"))
    output = _output(said, choice, request, told_id(body))
    if output and status == "incomplete":
        last = output[-1]
        output[-1] = finished(last, status)
    return {
        **response(request, body, status),
        "incomplete_details": details,
        "output": list[Json](output),
        "usage": usage_of(body.get("usage")),
    }


def response(request: Request, body: JsonObject, status: str) -> JsonObject:
    """Return a response that has said nothing yet; `body` is the completion, or a chunk of it."""
    document = request.document
    model, created = body.get("model"), body.get("created")
    told: JsonObject = {
        name: default if (value := document.get(name)) is None else value for name, default in TOLD_BACK.items()
    }
    if (tier := body.get("service_tier")) is not None:
        told["service_tier"] = tier
    text = member(document, "text")
    return {
        "id": f"resp_{told_id(body)}",
        "object": "response",
        "created_at": created if isinstance(created, int) else 0,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model if isinstance(model, str) and model else request.model,
        "output": [],
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None, **member(document, "reasoning")},
        "store": False,
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tools": [_tool(tool) for tool in parts_of(document.get("tools"))],
        "usage": None,
        **told,
    }


def ending(finish: Json) -> tuple[str, Json]:
    """Return the status of a response, and why it is incomplete."""
    reason = INCOMPLETE.get(finish) if isinstance(finish, str) else None
    return ("completed", None) if reason is None else ("incomplete", {"reason": reason})


def usage_of(usage: Json) -> Json:
    """Return inclusive figures in the names of this dialect; none where the provider told none."""
    used = of_openai(usage)
    if used is None:
        return None
    return {
        "input_tokens": used.input_total,
        "input_tokens_details": {
            "cached_tokens": used.cached_input_tokens,
            "cache_write_tokens": used.cache_write_tokens,
        },
        "output_tokens": used.output_total,
        "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        "total_tokens": used.total,
    }


def finished(item: JsonObject, status: str) -> JsonObject:
    """Return an item in its last state; calls of custom tools have none."""
    return {**item, "status": status} if "status" in item else item


def reasoning(item_id: str, thought: str, request: Request) -> JsonObject:
    """Return what the model thought: as a summary where the client asked for one, else as it is."""
    item: JsonObject = {"id": item_id, "type": "reasoning", "summary": [], "status": "completed"}
    if summarized(request):
        return {**item, "summary": [{"type": "summary_text", "text": thought}]}
    return {**item, "content": [{"type": "reasoning_text", "text": thought}]}


def message(item_id: str, content: list[Json]) -> JsonObject:
    """Return what the model said."""
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": content}


def text_part(text: str, logprobs: list[Json]) -> JsonObject:
    """Return a part of a message that is text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def refusal_part(refusal: str) -> JsonObject:
    """Return a part of a message in which the model declines."""
    return {"type": "refusal", "refusal": refusal}


def call(item_id: str, call_id: str, name: str, arguments: str, *, custom: bool) -> JsonObject:
    """Return a call of one of the client's tools."""
    if custom:
        return {"id": item_id, "type": "custom_tool_call", "call_id": call_id, "name": name, "input": arguments}
    item: JsonObject = {"id": item_id, "type": "function_call", "call_id": call_id, "name": name}
    return {**item, "arguments": arguments, "status": "completed"}


def summarized(request: Request) -> bool:
    """Return whether the client asked for summaries: it looks there then, and else where models' own words are."""
    wanted = member(request.document, "reasoning")
    return bool(wanted.get("summary") or wanted.get("generate_summary"))


def told_id(body: JsonObject) -> str:
    """Return what the provider calls the completion, as ids of this dialect may be spelled."""
    return FOREIGN_ID.sub("", said_text(body, "id").removeprefix("chatcmpl-"))[:ID_CHARACTERS_MAX] or "0"


def called(call: Json) -> tuple[str, str, str, bool]:
    """Return a call's id, its name, its arguments, and whether it is of a custom tool."""
    match call:
        case {"custom": dict(custom)}:
            return said_text(call, "id"), said_text(custom, "name"), said_text(custom, "input"), True
        case {"function": dict(function)}:
            return said_text(call, "id"), said_text(function, "name"), said_text(function, "arguments"), False
        case {"id": str(call_id)}:
            return call_id, "", "", False
        case _:
            return "", "", "", False


def said_text(owner: JsonObject, name: str) -> str:
    """Return a member that is a text; whatever else it is says nothing."""
    value = owner.get(name)
    return value if isinstance(value, str) else ""


def content_of(said: JsonObject) -> str:
    """Return what the model said; ValueError where that is no text."""
    match said.get("content"):
        case None:
            return ""
        case str(content):
            return content
        case _:
            raise ValueError("the answer's content is no text")


def thought_of(said: JsonObject) -> str:
    """Return what the model thought, by either name that servers have for it."""
    return said_text(said, "reasoning_content") or said_text(said, "reasoning")


def logprobs_of(choice: JsonObject) -> list[Json]:
    """Return the probabilities of what was said; `bytes` are always a list in this dialect."""
    found: list[Json] = []
    for token in parts_of(member_or_none(choice, "logprobs").get("content")):
        if isinstance(token, dict):
            others: list[Json] = [_probable(other) for other in parts_of(token.get("top_logprobs"))]
            found.append({**_probable(token), "top_logprobs": others})
    return found


def member_or_none(owner: JsonObject, name: str) -> JsonObject:
    """Return a member of an answer that is an object; whatever else it is says nothing."""
    value = owner.get(name)
    return value if isinstance(value, dict) else {}


def _probable(token: Json) -> JsonObject:
    told = token if isinstance(token, dict) else {}
    return {"token": said_text(told, "token"), "logprob": told.get("logprob"), "bytes": parts_of(told.get("bytes"))}


def _output(said: JsonObject, choice: JsonObject, request: Request, told: str) -> list[JsonObject]:
    output: list[JsonObject] = []
    if thought := thought_of(said):
        output.append(reasoning(f"rs_{told}_0", thought, request))
    content: list[Json] = []
    if text := content_of(said):
        content.append(text_part(text, logprobs_of(choice)))
    if refusal := said_text(said, "refusal"):
        content.append(refusal_part(refusal))
    if content:
        output.append(message(f"msg_{told}_{len(output)}", content))
    for place, given in enumerate(parts_of(said.get("tool_calls"))):
        call_id, name, arguments, custom = called(given)
        item_id = f"{'ctc' if custom else 'fc'}_{told}_{len(output)}"
        output.append(call(item_id, call_id or f"call_{told}_{place}", name, arguments, custom=custom))
    return output


def _tool(tool: Json) -> Json:
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {"parameters": None, "strict": None, **tool}
    return tool
