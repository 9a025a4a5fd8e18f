"""Conversations: synthetic ones of given lengths, with beginnings shared or not, of one turn or several; or a file's.

Words are short and common, so that a word is close to a token for any vocabulary; what the server itself counted stands
in the report. Nothing is repeated unless it is meant to be: a prefix cache must not be measured by accident.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from farthing.bench.inputs import lines_of
from farthing.bench.traces import BLOCK_TOKENS, TraceRow
from farthing.types.errors import InvalidInput

WORDS: Final = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother",
    "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business",
    "issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end",
    "member", "law", "car", "city", "name", "team", "minute", "idea", "body", "back", "face", "others", "level",
    "office", "door", "health", "person", "art", "war", "history", "party", "result", "change", "morning", "reason",
    "research", "girl", "guy", "moment", "air", "teacher", "force",
)  # fmt: skip
LENGTH_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of token counts; never below `least`, never above `most`."""

    mean: float
    deviation: float = 0.0
    least: int = 1
    most: int = LENGTH_MAX
    is_uniform: bool = False

    def draw(self, count: int, random: np.random.Generator) -> list[int]:
        if self.is_uniform:
            return [int(n) for n in random.integers(self.least, self.most + 1, count)]
        drawn = random.normal(self.mean, self.deviation, count) if self.deviation else np.full(count, self.mean)
        return [int(n) for n in np.clip(np.rint(drawn), self.least, self.most)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A request of a conversation: all messages so far, and how many tokens to answer."""

    messages: tuple[tuple[str, str], ...]
    """Role and text."""
    output_tokens: int


def parse_lengths(text: str) -> Lengths:
    """`128`, `64-256` (uniform) or `128~32` (normal, with its deviation). Raises `InvalidInput`."""
    found = re.fullmatch(r"(\d{1,7})(?:([-~])(\d{1,7}))?", text.strip())
    if found is None or not 1 <= int(found[1]) <= LENGTH_MAX:
        raise InvalidInput(f"`{text}` is no length", hint="write 128, 64-256 (uniform) or 128~32 (normal)")
    first, second = int(found[1]), int(found[3] or 0)
    if found[2] == "-":
        if second < first:
            raise InvalidInput(f"`{text}` ends before it begins")
        return Lengths(mean=(first + second) / 2, least=first, most=second, is_uniform=True)
    return Lengths(mean=first, deviation=second)


def conversations(
    count: int, prompt: Lengths, output: Lengths, *, turns: int, prefix_tokens: int, prefixes: int, seed: int
) -> list[list[Turn]]:
    """`count` conversations of `turns` requests each.

    `prefix_tokens` of each first prompt are one of `prefixes` common beginnings. The answers that later turns look back
    on are synthetic too, of the length that was asked for: what is sent does not depend on what came.
    """
    random = np.random.default_rng(seed)
    shared = (
        [_text(prefix_tokens, np.random.default_rng((seed, 1, n))) for n in range(prefixes)] if prefix_tokens else []
    )
    found = []
    for _ in range(count):
        prompt_tokens, output_tokens = prompt.draw(turns, random), output.draw(turns, random)
        messages: list[tuple[str, str]] = []
        chain = []
        for turn in range(turns):
            own = prompt_tokens[turn]
            words = _text(own, random)
            if turn == 0 and shared:
                words = f"{shared[int(random.integers(len(shared)))]} {_text(max(own - prefix_tokens, 1), random)}"
            messages.append(("user", words))
            chain.append(Turn(messages=tuple(messages), output_tokens=output_tokens[turn]))
            messages.append(("assistant", _text(output_tokens[turn], random)))
        found.append(chain)
    return found


def prompts_of_file(path: Path, output: Lengths, seed: int) -> list[list[Turn]]:
    """A conversation of one turn for each line: of `.jsonl` its `prompt` (a text) or its `messages` (role and content,
    as the API has them), of any other file the line itself. Raises `InvalidInput` with the line that cannot be used.
    """
    try:
        lines = lines_of(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    lengths = output.draw(len(lines), np.random.default_rng(seed))
    found = []
    for number, (line, length) in enumerate(zip(lines, lengths, strict=True), 1):
        messages = ((("user", line),)) if path.suffix.lower() != ".jsonl" else _messages(line, f"{path}, line {number}")
        found.append([Turn(messages=messages, output_tokens=length)])
    return found


def _messages(line: str, where: str) -> tuple[tuple[str, str], ...]:
    try:
        document = json.loads(line)
        if isinstance(prompt := document.get("prompt"), str):
            return (("user", prompt),)
        return tuple((str(one["role"]), str(one["content"])) for one in document["messages"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{where} is no prompt: {error}",
            hint='write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
        ) from error


def replayed(
    rows: Sequence[TraceRow], *, prompt_tokens_max: int, output_tokens_max: int, seed: int
) -> list[list[Turn]]:
    """A conversation of one turn for each row of a trace; blocks with the same id have the same words."""
    return [
        [
            Turn(
                messages=(("user", _replayed(row, min(row.prompt_tokens, prompt_tokens_max), seed, number)),),
                output_tokens=max(1, min(row.output_tokens, output_tokens_max)),
            )
        ]
        for number, row in enumerate(rows)
    ]


def _replayed(row: TraceRow, tokens: int, seed: int, number: int) -> str:
    tokens = max(tokens, 1)
    if not row.blocks:
        return _text(tokens, np.random.default_rng((seed, 2, number)))
    needed = -(-tokens // BLOCK_TOKENS)
    blocks = [_text(BLOCK_TOKENS, np.random.default_rng((seed, 3, block))) for block in row.blocks[:needed]]
    words = " ".join(blocks).split(" ")[:tokens]
    missing = tokens - len(words)
    return " ".join(words) + (f" {_text(missing, np.random.default_rng((seed, 2, number)))}" if missing > 0 else "")


def _text(words: int, random: np.random.Generator) -> str:
    return " ".join([WORDS[n] for n in random.integers(len(WORDS), size=words)])
