"""OpenAI's embeddings: texts or token ids in, vectors out, and no token (OpenAI's reference: embeddings). Pure."""

from __future__ import annotations

from gateway_svc.dialects import Dialect, Request, Size
from gateway_svc.dialects.fields import BYTES, COUNTED, FOREIGN, NEUTRAL, Fields, bounded, bytes_of, refuse, tokens_of
from gateway_svc.dialects.reading import Json, JsonObject, document_of, end_user, model_of, text, whole
from mesh.errors import invalid

INPUTS_MAX = 2_048
INPUT_TOKENS = 16  # what a provider adds to each text, with room
FORMATS = (None, "float", "base64")
# An answer that can't be taken is billed all the same, so what asks for one is refused. 24 MiB of what numbers come to
# leaves a third of the 32 MiB that a body may be: some servers write floats of 18 characters.
ANSWER_BYTES_MAX = 24 * 1024 * 1024
NUMBER_BYTES = {"float": 14.0, "base64": 5.4}  # 4 bytes are 5 1/3 in base64, whose text takes 2.3 times that
DIMENSIONS_MOST = 3_072  # of the models in the price list
DIMENSIONS = {"text-embedding-3-small": 1_536}  # of those that make fewer by themselves

FIELDS: Fields = {
    "model": COUNTED,
    "input": COUNTED,
    "dimensions": NEUTRAL,
    "encoding_format": NEUTRAL,
    "user": NEUTRAL,
    "safety_identifier": NEUTRAL,
    "task": BYTES,  # compatible servers put it before each text
    "input_type": NEUTRAL,
    "truncate": NEUTRAL,
    **FOREIGN,
}


def parse(body: bytes) -> Request:
    """Read a request; InvalidArgument names the field that is wrong."""
    return read(document_of(body))


def read(document: JsonObject) -> Request:
    """Check a request that is JSON already; InvalidArgument names the field that is wrong."""
    refuse(document, FIELDS)
    if document.get("encoding_format") not in FORMATS:
        raise invalid("encoding_format", "must be float or base64")
    model = model_of(document)
    dimensions = whole(document, "dimensions") or DIMENSIONS.get(model, DIMENSIONS_MOST)
    _check_input(document.get("input"))
    _check_answer(document, dimensions)
    return Request(
        dialect=Dialect.EMBEDDINGS,
        document=document,
        model=model,
        generates=False,
        end_user=end_user(text(document, "safety_identifier"), text(document, "user")),
    )


def size(document: JsonObject) -> Size:
    """Return what bounds the input of a request that was read: bytes of text, or the token ids themselves."""
    inputs = _inputs(document.get("input"))
    tokens, foreign = tokens_of(document, FIELDS)
    texts = [value for value in inputs if isinstance(value, str)]
    ids = sum(len(value) for value in inputs if isinstance(value, list))
    text_bytes = sum(len(value.encode(errors="replace")) for value in texts)
    tokens = tokens * max(1, len(inputs)) + ids + sum(bytes_of(value) for value in texts) + INPUT_TOKENS * len(inputs)
    return Size(tokens, foreign, 0, text_bytes + 4 * ids, bounded(document, FIELDS))


def limited(request: Request, model: str, output_tokens: int) -> JsonObject:  # noqa: ARG001  # nothing comes out
    """Return the request as it goes to a provider."""
    return {**request.document, "model": model}


def _inputs(value: Json) -> list[Json]:
    """Return each input by itself; a list of numbers is one."""
    if not isinstance(value, list):
        return [value]
    return [value] if value and all(type(item) is int for item in value) else value


def _check_input(value: Json) -> None:
    inputs = _inputs(value)
    if value is None or not 0 < len(inputs) <= INPUTS_MAX:
        raise invalid("input", f"must be a text, a list of token ids, or 1 to {INPUTS_MAX} of them")
    for index, item in enumerate(inputs):
        is_ids = isinstance(item, list) and bool(item) and all(type(token) is int and token >= 0 for token in item)
        if not (isinstance(item, str) and item) and not is_ids:
            raise invalid(f"input[{index}]" if isinstance(value, list) else "input", "must be a text or token ids")


def _check_answer(document: JsonObject, dimensions: int) -> None:
    """Refuse what would be answered with more than is taken."""
    each = dimensions * NUMBER_BYTES["base64" if document.get("encoding_format") == "base64" else "float"]
    fit = int(ANSWER_BYTES_MAX // each)
    if not fit:
        raise invalid("dimensions", "a vector of so many numbers is longer than an answer may be")
    if len(_inputs(document.get("input"))) > fit:
        raise invalid("input", f"at most {fit} vectors of {dimensions} numbers fit into an answer; base64 takes least")
