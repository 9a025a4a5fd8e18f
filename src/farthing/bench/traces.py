"""Reading recorded loads: when requests came, how long prompts and answers were, which beginnings they share.

Two published formats are read: Azure's LLM inference traces (CSV; Patel et al., Splitwise, ISCA 2024) and Mooncake's
(JSON lines with hashes of blocks of 512 tokens; Qin et al., FAST 2025). Neither has text: `prompts` makes some.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from farthing.types.errors import InvalidInput

BLOCK_TOKENS: Final = 512
"""Tokens that one of Mooncake's hashes stands for."""
ROWS_MAX: Final = 2_000_000
TOKENS_MAX: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One recorded request; `at_s` counts from the first."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """Ids of the blocks of `BLOCK_TOKENS` that the prompt consists of; equal ids are equal tokens."""


class _Mooncake(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path) -> list[TraceRow]:
    """The rows of a trace, by time. Raises `InvalidInput` with the line that cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            rows = list(_mooncake(lines) if first.lstrip().startswith("{") else _azure(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    except InvalidInput as error:
        raise InvalidInput(f"{path}, {error.message}", hint=error.hint) from error
    if not rows:
        raise InvalidInput(f"{path} has no requests in it")
    rows.sort(key=lambda row: row.at_s)
    return [replace(row, at_s=row.at_s - rows[0].at_s) for row in rows]


def scaled(rows: Sequence[TraceRow], *, speed: float, duration_s: float | None = None) -> list[TraceRow]:
    """The trace played `speed` times as fast, and no longer than `duration_s`."""
    if not speed > 0:
        raise InvalidInput(f"a speed of {speed:g}; it must be above 0")
    played = (replace(row, at_s=row.at_s / speed) for row in rows)
    return [row for row in played if duration_s is None or row.at_s < duration_s]


def _mooncake(lines: Iterable[str]) -> Iterator[TraceRow]:
    decoder = msgspec.json.Decoder(_Mooncake)
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise InvalidInput(f"line {number}: {error}") from error
            yield _row(number, row.timestamp / 1e3, row.input_length, row.output_length, row.hash_ids)


def _azure(lines: Iterable[str]) -> Iterator[TraceRow]:
    rows = csv.reader(lines)
    header = next(rows, [])
    wanted = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    if any(name not in header for name in wanted):
        raise InvalidInput(
            f"line 1: columns {', '.join(header)}; a trace has {', '.join(wanted)}",
            hint="give Azure's CSV or Mooncake's JSON lines",
        )
    columns = [header.index(name) for name in wanted]
    for number, cells in enumerate(rows, 2):
        try:
            at, prompt, output = (cells[column] for column in columns)
            time_ns = int(np.datetime64(at.removesuffix("+00:00").strip(), "ns").astype(np.int64))
            yield _row(number, time_ns / 1e9, int(prompt), int(output), ())
        except (ValueError, IndexError) as error:
            raise InvalidInput(f"line {number}: {error}") from error


def _row(number: int, at_s: float, prompt: int, output: int, blocks: tuple[int, ...]) -> TraceRow:
    if number > ROWS_MAX:
        raise InvalidInput(f"line {number}: more than {ROWS_MAX:,} requests", hint="cut the trace")
    if not (0 <= prompt <= TOKENS_MAX and 0 <= output <= TOKENS_MAX):
        raise InvalidInput(
            f"line {number}: {prompt} prompt and {output} output tokens; 0 to {TOKENS_MAX:,} are allowed"
        )
    if not np.isfinite(at_s):
        raise InvalidInput(f"line {number}: the time is no number")
    return TraceRow(at_s=at_s, prompt_tokens=prompt, output_tokens=output, blocks=blocks)
