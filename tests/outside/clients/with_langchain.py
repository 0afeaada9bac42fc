"""LangChain's ChatOpenAI does what its users do, and prints what it got: `with_langchain.py BASE_URL KEY MODEL`."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

langchain: Any = importlib.import_module("langchain_openai")  # installed where this runs alone

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def main(base_url: str, key: str, model: str) -> None:
    chat = langchain.ChatOpenAI(base_url=f"{base_url}/v1", api_key=key, model=model, max_tokens=64, max_retries=0)
    answer = chat.invoke("one two three")
    whole: Any = None
    for chunk in chat.stream("one two three", stream_usage=True):
        whole = chunk if whole is None else whole + chunk
    called = chat.bind_tools([TOOL]).invoke("one")
    told = {
        "text": answer.content,
        "usage": answer.usage_metadata,
        "streamed": whole.content,
        "streamed_usage": whole.usage_metadata,
        "unasked": "".join(chunk.content for chunk in chat.stream("one two three")),
        "tools": [call["name"] for call in called.tool_calls],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
