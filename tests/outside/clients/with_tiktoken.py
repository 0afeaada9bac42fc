"""OpenAI's own tokenizer counts texts: JSON lists of them, a line each, to a list of the counts by each vocabulary."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

tiktoken: Any = importlib.import_module("tiktoken")  # installed where this runs alone

ENCODINGS = ("o200k_base", "cl100k_base")


def main() -> None:
    encodings = [tiktoken.get_encoding(name) for name in ENCODINGS]
    for line in sys.stdin:
        texts = json.loads(line)
        counts = [sum(map(len, encoding.encode_ordinary_batch(texts, num_threads=1))) for encoding in encodings]
        print(json.dumps(counts))


if __name__ == "__main__":
    main()
