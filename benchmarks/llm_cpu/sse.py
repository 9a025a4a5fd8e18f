"""What a streamed completion said and when, from the pieces in which it arrived.

Pieces are kept as they come while the clock runs and read afterwards, so that the generator spends next to nothing
beside the server. Sockets belong to `load`.
"""

import json
from dataclasses import dataclass
from typing import Any

Piece = tuple[float, bytes]
"""(seconds, bytes as received)."""


class StreamBroken(Exception):
    """The answer is no stream of completion chunks, or it ended early."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion as the client saw it."""

    begin_s: float
    first_s: float
    """When the first chunk with text was there."""
    end_s: float
    """When the last chunk with text was there."""
    prompt_tokens: int
    tokens: int
    """Generated, as the server's own usage says."""
    text: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.begin_s

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first one."""
        return (self.tokens - 1) / (self.end_s - self.first_s) if self.end_s > self.first_s else 0.0


def dechunk(pieces: list[Piece]) -> tuple[bytes, list[Piece]]:
    """The head of an HTTP answer, and its body with the transfer coding taken off, each piece at its time."""
    head, rest, body, is_chunked = b"", b"", [], None
    left = skip = 0  # bytes of the current chunk still to come, and of the CRLF that closes it
    for at, piece in pieces:
        rest += piece
        if is_chunked is None:
            head, separator, after = rest.partition(b"\r\n\r\n")
            if not separator:
                continue
            rest, is_chunked = after, b"transfer-encoding: chunked" in head.lower()
        if not is_chunked:
            if rest:
                body.append((at, rest))
            rest = b""
            continue
        out = b""
        while rest:
            if left:
                out += rest[:left]
                left, rest = left - len(rest[:left]), rest[left:]
                continue
            if skip:
                skip, rest = skip - len(rest[:skip]), rest[skip:]
                continue
            line, separator, after = rest.partition(b"\r\n")
            if not separator:
                break
            size = int(line.partition(b";")[0], 16)
            rest = after
            if not size:
                return head, [*body, *([(at, out)] if out else [])]
            left, skip = size, 2
        if out:
            body.append((at, out))
    return head, body


def events(body: list[Piece]) -> list[tuple[float, dict[str, Any]]]:
    """Each `data:` line's JSON and when it was whole; `[DONE]` is left out."""
    found, rest = [], b""
    for at, piece in body:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.strip()
            if data.startswith(b"data:") and (data := data[5:].strip()) != b"[DONE]":
                found.append((at, json.loads(data)))
    return found


def read(begin_s: float, pieces: list[Piece]) -> Answer:
    """The completion in these pieces. Raises `StreamBroken` unless it has text, an end and a count of its tokens."""
    head, body = dechunk(pieces)
    if b" 200 " not in head.partition(b"\r\n")[0] + b" ":
        raise StreamBroken(f"answered {head[:100]!r} {b''.join(piece for _, piece in body)[:500]!r}")
    times, texts, usage, is_finished = [], [], None, False
    for at, event in events(body):
        if "error" in event:
            raise StreamBroken(f"failed: {event['error']}")
        for choice in event.get("choices") or ():
            if choice.get("text"):
                times.append(at)
                texts.append(choice["text"])
            is_finished = is_finished or bool(choice.get("finish_reason"))
        usage = event.get("usage") or usage
    if not times or not is_finished or usage is None:
        raise StreamBroken(f"{len(times)} chunks with text, finished: {is_finished}, usage: {usage}")
    return Answer(
        begin_s=begin_s,
        first_s=times[0],
        end_s=times[-1],
        prompt_tokens=usage["prompt_tokens"],
        tokens=usage["completion_tokens"],
        text="".join(texts),
    )
