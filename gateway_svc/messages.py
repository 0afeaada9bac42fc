"""Chat completion requests in Anthropic's Messages dialect. Pure; answers come back through `messages_answers`.

What the dialect has no place for (penalties, seeds, logprobs) is left out, as Anthropic's own OpenAI layer does; what
would change the meaning of a request is refused. (docs.anthropic.com: Messages, OpenAI SDK compatibility.)
"""

from __future__ import annotations

import re

import orjson

from gateway_svc.chat import ChatRequest, Json, JsonObject
from mesh.errors import InvalidArgument, invalid

DATA_URL = re.compile(r"^data:([a-z]+/[a-z0-9.+-]+);base64,(.+)$", re.DOTALL)
JSON_INSTRUCTION = "Answer with one JSON object and nothing else."
TEMPERATURE_MAX = 1.0
SYSTEM_ROLES = ("system", "developer")
PASSED = ("temperature", "top_p", "top_k")


def messages_body(chat: ChatRequest, output_tokens: int) -> JsonObject:
    """Translate a request; InvalidArgument names what can't be."""
    document = chat.document
    if chat.choices != 1:
        raise invalid("n", "this provider gives one choice")
    if document.get("functions") is not None:
        raise invalid("functions", "this provider takes tools instead")
    body: JsonObject = {
        "model": chat.model,
        "max_tokens": output_tokens,
        "messages": _turns(chat),
        "stream": chat.stream,
    }
    body |= {name: value for name in PASSED if (value := document.get(name)) is not None}
    if isinstance(temperature := body.get("temperature"), int | float):
        body["temperature"] = min(temperature, TEMPERATURE_MAX)
    if (stop := document.get("stop")) is not None:
        body["stop_sequences"] = stop if isinstance(stop, list) else [stop]
    if isinstance(user := document.get("user"), str):
        body["metadata"] = {"user_id": user}
    return body | _system(chat) | _tools(document) | _format(document)


def _system(chat: ChatRequest) -> JsonObject:
    texts = [
        text
        for index, message in enumerate(chat.messages)
        if message.get("role") in SYSTEM_ROLES
        for text in _texts(message.get("content"), f"messages[{index}].content")
    ]
    if _kind(chat.document.get("response_format")) == "json_object":
        texts.append(JSON_INSTRUCTION)
    return {"system": "\n\n".join(texts)} if texts else {}


def _turns(chat: ChatRequest) -> list[Json]:
    """Give user and assistant in turn: what follows in one role becomes one message, as tool results must."""
    turns: list[tuple[str, list[Json]]] = []
    for index, message in enumerate(chat.messages):
        role = message.get("role")
        if role in SYSTEM_ROLES:
            continue
        speaker = "assistant" if role == "assistant" else "user"
        blocks = _blocks(message, f"messages[{index}]")
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
            said: list[Json] = [
                {"type": "text", "text": text} for text in _texts(content, f"{field}.content") if text.strip()
            ]
            return said + _tool_uses(message.get("tool_calls"), f"{field}.tool_calls")
        case "tool":
            result: list[Json] = [{"type": "text", "text": text} for text in _texts(content, f"{field}.content")]
            return [{"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": result}]
        case _:
            raise invalid(f"{field}.role", "must be system, developer, user, assistant or tool")


def _texts(content: Json, field: str) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    texts: list[str] = []
    for part in content if isinstance(content, list) else []:
        text = part.get("text") or part.get("refusal") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise InvalidArgument("UNSUPPORTED_PART", f"{field}: only text is taken here", field=field)
        texts.append(text)
    return texts


def _parts(content: Json, field: str) -> list[Json]:
    if not isinstance(content, list):
        return [{"type": "text", "text": text} for text in _texts(content, field)]
    return [_part(part, f"{field}[{index}]") for index, part in enumerate(content)]


def _part(part: Json, field: str) -> Json:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return {"type": "image", "source": _source(url)}
        case {"type": "file", "file": {"file_data": str(url)}} if DATA_URL.match(url):
            return {"type": "document", "source": _source(url)}
        case _:
            raise InvalidArgument("UNSUPPORTED_PART", f"{field}: this provider takes no such part", field=field)


def _source(url: str) -> JsonObject:
    inline = DATA_URL.match(url)
    if inline is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": inline[1], "data": inline[2]}


def _tool_uses(calls: Json, field: str) -> list[Json]:
    uses: list[Json] = []
    for index, call in enumerate(calls if isinstance(calls, list) else []):
        match call:
            case {"id": str(call_id), "function": {"name": str(name), "arguments": str(arguments)}}:
                uses.append({"type": "tool_use", "id": call_id, "name": name, "input": _input(arguments, field)})
            case _:
                raise invalid(f"{field}[{index}]", "must have an id, and a function with name and arguments")
    return uses


def _input(arguments: str, field: str) -> Json:
    try:
        value: Json = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        raise invalid(field, "arguments must be JSON") from None
    return value


def _tools(document: JsonObject) -> JsonObject:
    tools = document.get("tools")
    if not isinstance(tools, list) or not tools:
        return {}
    translated = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    choice = _tool_choice(document.get("tool_choice"))
    if document.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tools": translated, "tool_choice": choice}


def _tool(tool: Json, field: str) -> Json:
    match tool:
        case {"type": "function", "function": {"name": str(name), **rest}}:
            schema: Json = rest.get("parameters") or {"type": "object", "properties": {}}
            translated: JsonObject = {"name": name, "input_schema": schema}
            if isinstance(description := rest.get("description"), str):
                translated["description"] = description
            return translated
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
        case _:
            raise invalid("tool_choice", "must be none, auto, required or a function")


def _format(document: JsonObject) -> JsonObject:
    response_format = document.get("response_format")
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
        case None | {"type": "text" | "json_object"}:
            return {}
        case _:
            raise invalid("response_format", "must be text, json_object or json_schema with a schema")


def _kind(value: Json) -> Json:
    return value.get("type") if isinstance(value, dict) else None
