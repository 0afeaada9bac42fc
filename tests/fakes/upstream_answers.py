"""What the fake provider says to one request, in each dialect, as its orders want it."""

from __future__ import annotations

import json
from typing import Any

WORDS = 8
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class Answer:
    """What the provider says to one request."""

    def __init__(self, body: dict[str, Any], orders: dict[str, str]) -> None:
        self.body = body
        self.orders = orders
        limit = next((body[name] for name in LIMITS if body.get(name)), 10**9)
        self.words = [f"word{number}" for number in range(min(int(orders.get("words", WORDS)), limit))]
        self.prompt_tokens = self.asked()
        self.completion_tokens = len(self.words) * int(body.get("n") or 1)

    def reason(self) -> str:
        return "tool_calls" if self.body.get("tools") else "stop"

    def asked(self) -> int:
        """Count the words of the prompt."""
        return sum(words_in(message.get("content")) for message in self.body["messages"])

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": int(self.orders.get("cached", "0"))},
        }

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-fake", "object": kind, "created": 1_750_000_000, "model": self.body["model"]}

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": " ".join(self.words)}
        if self.body.get("tools"):
            function = {"name": self.body["tools"][0]["function"]["name"], "arguments": "{}"}
            calls = [{"id": "call_1", "type": "function", "function": function}]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        count = int(self.body.get("n") or 1)
        choices = [{"index": index, "message": message, "finish_reason": self.reason()} for index in range(count)]
        answer = {**self.head("chat.completion"), "choices": choices}
        return answer if self.orders.get("usage") == "missing" else {**answer, "usage": self.usage()}

    def events(self) -> list[str]:
        head = self.head("chat.completion.chunk")
        choices: list[dict[str, Any]] = [{"index": 0, "delta": {"role": "assistant", "content": ""}}]
        if self.body.get("tools"):
            function = {"name": self.body["tools"][0]["function"]["name"], "arguments": ""}
            calls = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
            calls += [{"index": 0, "function": {"arguments": part}} for part in ("{", "}")]
            choices += [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None} for call in calls]
        else:
            choices += [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None} for word in self.words]
        if "clean-eof" not in self.orders:
            choices += [{"index": 0, "delta": {}, "finish_reason": self.reason()}]
        events = [json.dumps({**head, "choices": [choice], "usage": None}) for choice in choices]
        if "zeros-first" in self.orders:
            zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
            events[0] = json.dumps({**head, "choices": [choices[0]], "usage": zeros})
        wanted = (self.body.get("stream_options") or {}).get("include_usage")
        if wanted and self.orders.get("usage") != "missing":
            events.append(json.dumps({**head, "choices": [], "usage": self.usage()}))
        return events


class Message(Answer):
    """The same answer in Anthropic's dialect."""

    def message_usage(self) -> dict[str, Any]:
        cached = int(self.orders.get("cached", "0"))
        return {
            "input_tokens": self.prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": self.completion_tokens,
        }

    def whole_message(self) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": " ".join(self.words)}]
        if self.body.get("tools"):
            name = self.body["tools"][0]["name"]
            content = [{"type": "tool_use", "id": "toolu_1", "name": name, "input": {"city": "Bern"}}]
        return {
            "id": "msg_fake",
            "type": "message",
            "role": "assistant",
            "model": self.body["model"],
            "content": content,
            "stop_reason": "tool_use" if self.body.get("tools") else "end_turn",
            "usage": self.message_usage(),
        }

    def message_events(self) -> list[dict[str, Any]]:
        whole = self.whole_message()
        start = {**whole, "content": [], "stop_reason": None, "usage": {**self.message_usage(), "output_tokens": 1}}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
        if self.body.get("tools"):
            block = {**whole["content"][0], "input": {}}
            parts = [{"type": "input_json_delta", "partial_json": part} for part in ('{"city"', ': "Bern"}')]
        else:
            block = {"type": "text", "text": ""}
            parts = [{"type": "text_delta", "text": f"{word} "} for word in self.words]
        events.append({"type": "content_block_start", "index": 0, "content_block": block})
        events += [{"type": "content_block_delta", "index": 0, "delta": part} for part in parts]
        events.append({"type": "content_block_stop", "index": 0})
        usage = {"output_tokens": self.completion_tokens}
        events.append({"type": "message_delta", "delta": {"stop_reason": whole["stop_reason"]}, "usage": usage})
        return [*events, {"type": "message_stop"}]


class Response(Answer):
    """The same answer as the Responses API gives it."""

    def asked(self) -> int:
        given = self.body["input"]
        return words_in(given) if isinstance(given, str) else sum(words_in(item.get("content")) for item in given)

    def response_usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": int(self.orders.get("cached", "0"))},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def item(self) -> dict[str, Any]:
        if self.body.get("tools"):
            name = self.body["tools"][0]["name"]
            call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "status": "completed"}
            return {**call, "name": name, "arguments": '{"city": "Bern"}'}
        text = {"type": "output_text", "text": " ".join(self.words), "annotations": []}
        return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}

    def whole_response(self) -> dict[str, Any]:
        return {
            "id": "resp_fake",
            "object": "response",
            "created_at": 1_750_000_000,
            "status": "completed",
            "model": self.body["model"],
            "output": [self.item()],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": self.body.get("tools", []),
            "usage": self.response_usage(),
        }

    def response_events(self) -> list[dict[str, Any]]:
        whole, item = self.whole_response(), self.item()
        started = {**whole, "status": "in_progress", "output": [], "usage": None}
        at = {"item_id": item["id"], "output_index": 0}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": started},
            {"type": "response.in_progress", "response": started},
        ]
        if item["type"] == "function_call":
            begun = {**item, "arguments": "", "status": "in_progress"}
            parts = [{"type": "response.function_call_arguments.delta", **at, "delta": item["arguments"]}]
            done = {"type": "response.function_call_arguments.done", **at, "arguments": item["arguments"]}
            ends = [{**done, "name": item["name"]}]
        else:
            begun = {**item, "content": [], "status": "in_progress"}
            at = {**at, "content_index": 0}
            empty = {"type": "output_text", "text": "", "annotations": []}
            parts = [{"type": "response.content_part.added", **at, "part": empty}]
            deltas = [f"{word} " for word in self.words[:-1]] + self.words[-1:]
            parts += [{"type": "response.output_text.delta", **at, "delta": delta, "logprobs": []} for delta in deltas]
            text = item["content"][0]
            ends = [{"type": "response.output_text.done", **at, "text": text["text"], "logprobs": []}]
            ends += [{"type": "response.content_part.done", **at, "part": text}]
        events += [{"type": "response.output_item.added", "output_index": 0, "item": begun}, *parts, *ends]
        events += [{"type": "response.output_item.done", "output_index": 0, "item": item}]
        events += [{"type": "response.completed", "response": whole}]
        return [{**event, "sequence_number": number} for number, event in enumerate(events)]


class Embeddings(Answer):
    """Vectors, for which nothing is written."""

    def __init__(self, body: dict[str, Any], orders: dict[str, str]) -> None:
        super().__init__(body, orders)
        self.completion_tokens = 0

    def inputs(self) -> list[Any]:
        given = self.body["input"]
        return given if isinstance(given, list) else [given]

    def asked(self) -> int:
        return sum(words_in(each) if isinstance(each, str) else 1 for each in self.inputs())

    def vectors(self) -> dict[str, Any]:
        packed = "AACAPgAAAL8AAAA+AACAPw=="  # the same four numbers as 32-bit floats
        vector = packed if self.body.get("encoding_format") == "base64" else [0.25, -0.5, 0.125, 1.0]
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(self.inputs()))]
        usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        return {"object": "list", "model": self.body["model"], "data": data, "usage": usage}


def words_in(content: Any) -> int:
    """Count the words of a message's content, a text or a list of parts."""
    if isinstance(content, str):
        return len(content.split())
    return sum(len(str(part.get("text", "")).split()) for part in content or [])
