"""Anthropic's own client does what its users do, and prints what it got: `with_anthropic.py BASE_URL KEY MODEL`."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

anthropic: Any = importlib.import_module("anthropic")  # installed where this runs alone

SAID = [{"role": "user", "content": "one two three"}]
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def error_of(client: Any, model: str) -> dict[str, Any]:
    try:
        client.messages.create(model=model, messages=SAID, max_tokens=16)
    except anthropic.APIStatusError as error:
        kind = error.body["error"]["type"]
        return {"class": type(error).__name__, "status": error.status_code, "type": kind, "id": error.request_id}
    return {}


def main(base_url: str, key: str, model: str) -> None:
    client = anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0)
    older = anthropic.Anthropic(
        base_url=base_url,
        api_key=key,
        max_retries=0,
        default_headers={"x-api-key": key, "authorization": anthropic.omit, "anthropic-version": "2023-06-01"},
    )
    asked = {"model": model, "messages": SAID, "max_tokens": 64}
    answer = client.messages.create(**asked, system="be brief")
    with client.messages.stream(**asked) as stream:
        streamed = "".join(stream.text_stream)
        final = stream.get_final_message()
    called = client.messages.create(**asked, tools=[TOOL], tool_choice={"type": "any"})
    with client.messages.stream(**asked, tools=[TOOL]) as stream:
        called_in_stream = stream.get_final_message()
    use = called.content[-1]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "rain"}
    turns = [*SAID, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(**{**asked, "messages": turns}, tools=[TOOL])
    told = {
        "text": answer.content[0].text,
        "stop": answer.stop_reason,
        "output_tokens": answer.usage.output_tokens,
        "request_id": answer._request_id,
        "older": older.messages.create(**asked).content[0].text,
        "streamed": streamed,
        "streamed_tokens": final.usage.output_tokens,
        "streamed_input_tokens": final.usage.input_tokens,
        "tool": [use.type, use.name, use.input],
        "tool_streamed": [[block.type, block.name, block.input] for block in called_in_stream.content],
        "after": after.stop_reason,
        "counted": client.messages.count_tokens(model=model, messages=SAID).input_tokens,
        "models": [each.id for each in client.models.list()],
        "model": client.models.retrieve(model).type,
        "bad_key": error_of(anthropic.Anthropic(base_url=base_url, api_key="cpk_no", max_retries=0), model),
        "no_model": error_of(client, "no-such-model"),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
