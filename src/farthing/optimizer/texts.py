"""Samples as people have them: a text a line, or JSON lines; turned into a model's input arrays.

A line of JSON has a field for each input, or a `text` (and a `text_pair`) for a tokenizer to turn into them, and
perhaps a `label`. Checking the arrays against the model is `optimizer.samples`'.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from farthing.types.errors import InvalidInput
from farthing.types.tensors import Tensor, TensorSpec

SUFFIXES: Final = (".txt", ".jsonl")
FILE_BYTES_MAX: Final = 1 << 30
SAMPLES_MAX: Final = 1_000_000
TOKENS_MAX: Final = 512
"""Of a text; where the model has room for fewer, that many."""

FROM_TOKENIZER: Final = {
    "input_ids": "ids",
    "input_word_ids": "ids",
    "attention_mask": "attention_mask",
    "input_mask": "attention_mask",
    "token_type_ids": "type_ids",
    "segment_ids": "type_ids",
}
"""Names of inputs -> what a tokenizer calls them."""

TEXT: Final = "text"
PAIR: Final = "text_pair"
LABELS: Final = ("labels", "label")
HINT: Final = (
    'a text a line (.txt), or lines such as {"text": "...", "label": 1} or {"INPUT_NAME": [1, 2], "label": 1} (.jsonl)'
)


def read_texts(path: Path, inputs: Sequence[TensorSpec], tokenizer: Path | None) -> dict[str, Tensor]:
    """An array for each input, each [samples, ...], and `labels` if the lines have any.

    Texts fill the one input that takes BYTES, or go through `tokenizer` (a `tokenizer.json`), padded to the longest.
    Raises `InvalidInput` naming file and line.
    """
    lines = _lines(path)
    if path.suffix.lower() == ".txt":
        return _from_texts([line for line in lines if line], [], inputs, tokenizer, path)
    rows = [_row(line, path, number) for number, line in enumerate(lines, 1) if line]
    if not rows:
        raise InvalidInput(f"{path}: has no samples", hint=HINT)
    fields = rows[0].keys()
    odd = next((number for number, row in enumerate(rows, 1) if row.keys() != fields), 0)
    if odd:
        raise InvalidInput(
            f"{path}: sample {odd} has other fields than the first: {', '.join(rows[odd - 1])}", hint=HINT
        )
    labelled = next((name for name in LABELS if name in fields), None)
    columns = {name: [row[name] for row in rows] for name in fields if name != labelled}
    if TEXT in columns and TEXT not in {spec.name for spec in inputs}:
        texts, pairs = columns.pop(TEXT), columns.pop(PAIR, [])
        arrays = _from_texts(texts, pairs, inputs, tokenizer, path)
    else:
        arrays = {}
    specs = {spec.name: spec for spec in inputs}
    for name, values in columns.items():
        arrays[name] = _array(values, specs.get(name), name, path)
    if labelled is not None:
        arrays["labels"] = _array([row[labelled] for row in rows], None, labelled, path)
    return arrays


def tokenizer_beside(model: Path) -> Path | None:
    """The `tokenizer.json` that a model comes with: beside it, or in its model's folder."""
    found = (folder / "tokenizer.json" for folder in (model.parent, model.parent.parent))
    return next((path for path in found if path.is_file()), None)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise InvalidInput(f"{path}: over {FILE_BYTES_MAX} bytes", hint="a few thousand samples are enough")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}", hint=HINT) from error
    if len(lines) > SAMPLES_MAX:
        raise InvalidInput(f"{path}: {len(lines)} lines; allowed: {SAMPLES_MAX}", hint="give fewer samples")
    return [line.strip() for line in lines]


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: line {number} is no JSON: {error}", hint=HINT) from error
    if not isinstance(row, dict) or not row:
        raise InvalidInput(f"{path}: line {number} is no object with fields", hint=HINT)
    return row


def _array(values: list[Any], spec: TensorSpec | None, name: str, path: Path) -> Tensor:
    if spec is not None and spec.datatype == "BYTES":
        return bytes_array(values)
    try:
        array = np.array(values)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{path}: `{name}` differs in shape from sample to sample: {error}", hint=HINT) from error
    if array.dtype.hasobject or array.dtype.kind in "US":
        raise InvalidInput(f"{path}: `{name}` holds something else than numbers", hint=HINT)
    return array


def bytes_array(values: Any) -> Tensor:
    """Text or nested lists of it as an array of bytes, which is what BYTES are inside."""
    array = np.array(values, object)
    flat = [v.encode() if isinstance(v, str) else v for v in array.flat]
    wrong = next((v for v in flat if not isinstance(v, bytes)), None)
    if wrong is not None:
        raise InvalidInput(f"text is wanted; found {type(wrong).__name__}: {str(wrong)[:40]}", hint=HINT)
    made = np.empty(array.shape, object)
    for at, value in enumerate(flat):
        made.flat[at] = value
    return made


def _from_texts(
    texts: list[Any], pairs: list[Any], inputs: Sequence[TensorSpec], tokenizer: Path | None, path: Path
) -> dict[str, Tensor]:
    if not texts or not all(isinstance(text, str) for text in (*texts, *pairs)):
        raise InvalidInput(f"{path}: has {'texts that are no strings' if texts else 'no samples'}", hint=HINT)
    taking_text = [spec for spec in inputs if spec.datatype == "BYTES"]
    if len(taking_text) == len(inputs) == 1:
        return {taking_text[0].name: bytes_array(texts)}
    wanted = {spec.name: FROM_TOKENIZER.get(spec.name) for spec in inputs}
    unknown = [name for name, kind in wanted.items() if kind is None]
    if unknown:
        raise InvalidInput(
            f"{path}: no tokenizer gives input `{unknown[0]}`; known: {', '.join(FROM_TOKENIZER)}",
            hint="prepare the inputs yourself, as arrays in a .npz",
        )
    if tokenizer is None:
        raise InvalidInput(
            f"{path}: texts need a tokenizer, and there is no tokenizer.json beside the model",
            hint="name it: --tokenizer tokenizer.json",
        )
    return _tokenised(texts, pairs, {name: kind for name, kind in wanted.items() if kind}, inputs, tokenizer)


def _tokenised(
    texts: list[str], pairs: list[str], wanted: Mapping[str, str], inputs: Sequence[TensorSpec], tokenizer: Path
) -> dict[str, Tensor]:
    from tokenizers import Tokenizer

    try:
        encoder = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises plain Exceptions
        raise InvalidInput(
            f"{tokenizer}: is no tokenizer: {error}", hint="a tokenizer.json of Hugging Face's"
        ) from error
    fixed = max((spec.shape[-1] for spec in inputs if spec.name in wanted and spec.shape), default=-1)
    if fixed > 0:
        encoder.enable_truncation(fixed)
        encoder.enable_padding(**_padding(encoder), length=fixed)
    else:
        encoder.enable_truncation(TOKENS_MAX)
        encoder.enable_padding(**_padding(encoder), length=None)
    encoded = encoder.encode_batch(list(zip(texts, pairs, strict=True)) if pairs else texts)
    return {name: np.array([getattr(one, kind) for one in encoded], np.int64) for name, kind in wanted.items()}


def _padding(encoder: Any) -> dict[str, Any]:
    """What the tokenizer says of padding, its length aside."""
    said = encoder.padding or {}
    known = ("direction", "pad_id", "pad_type_id", "pad_token")
    return {name: said[name] for name in known if name in said}
