"""10,000 prompts in all dialects: by OpenAI's own vocabularies none has more tokens than its bound."""

from __future__ import annotations

import asyncio
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gateway_svc.dialects import Dialect
from gateway_svc.dialects.registry import limited, parse, size_of
from gateway_svc.translations.registry import PAIRS
from tests.prompts import MAKERS, overhead_of, request, texts_of

pytestmark = pytest.mark.timeout(580)
CLIENT = Path(__file__).parent / "clients" / "with_tiktoken.py"
TOKENIZER = "tiktoken==0.14.0"
VOCABULARIES = "litellm==1.109.1"  # carries OpenAI's vocabularies, which are not on PyPI by themselves
PROMPTS = 10_000
WAYS = (*((dialect, None) for dialect in MAKERS), *PAIRS)


async def run(*command: str | Path, stdin: bytes = b"", **environ: str) -> bytes:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=pipe, stdout=pipe, stderr=pipe, env=environ or None
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 400)
    assert process.returncode == 0, err.decode()[-3_000:]
    return out


@pytest.fixture(scope="module")
async def counted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, int, tuple[Any, ...]]]:
    """Return each prompt's bound, its tokens by the vocabulary that makes more of them, and which it is."""
    folder = tmp_path_factory.mktemp("tokens")
    python = folder / "venv" / "bin" / "python"
    await run(sys.executable, "-m", "venv", folder / "venv")
    await run(python, "-m", "pip", "install", "--quiet", TOKENIZER)
    await run(python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, VOCABULARIES)
    with zipfile.ZipFile(next(folder.glob("litellm*.whl"))) as wheel:
        files = [name for name in wheel.namelist() if "/tokenizers/" in name]
        wheel.extractall(folder, files)
    cache = folder / Path(files[0]).parent
    sized: list[tuple[int, int]] = []
    lines: list[str] = []
    for number in range(PROMPTS):
        near, far = WAYS[number % len(WAYS)]
        document, bound = prompt(near, far, number)
        sized.append((bound, overhead_of(document)))
        lines.append(json.dumps(list(texts_of(document))))
    told = await run(python, CLIENT, stdin="\n".join(lines).encode(), TIKTOKEN_CACHE_DIR=str(cache))
    counts = [max(json.loads(line)) for line in told.splitlines()]
    return [
        (bound, tokens + overhead, (number, *WAYS[number % len(WAYS)]))
        for number, ((bound, overhead), tokens) in enumerate(zip(sized, counts, strict=True))
    ]


def prompt(near: Dialect, far: Dialect | None, seed: int) -> tuple[dict[str, Any], int]:
    """Return what goes to a provider for one seed, and its bound."""
    asked = parse(near, request(near, seed))
    if far is not None:
        asked = PAIRS[near, far].request(asked)
    return dict(limited(asked, "m", 16)), size_of(asked).tokens


async def test_no_prompt_has_more_tokens_than_its_bound(counted: list[tuple[int, int, tuple[Any, ...]]]) -> None:
    assert len(counted) == PROMPTS
    assert [each for each in counted if each[1] > each[0]] == []


async def test_a_quarter_of_the_letters_would_be_no_bound(counted: list[tuple[int, int, tuple[Any, ...]]]) -> None:
    assert any(tokens > bound // 4 for bound, tokens, _ in counted)
    assert max(tokens / bound for bound, tokens, _ in counted) > 0.5
