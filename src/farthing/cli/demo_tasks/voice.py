"""Is somebody speaking? Silero VAD along a telephone call, 32 ms at a time, its state carried by the client.

Held against the call's labels: who spoke from when to when. A chunk counts as speech if its middle is in a turn.
"""

import threading
from typing import Final

import numpy as np
import soundfile

from farthing.cli.demo_tasks.task import Finding, Infers, is_near
from farthing.repository.samples import input_folder
from farthing.types.tensors import Tensor

RATE_HZ: Final = 16_000
CHUNK: Final = 512
CONTEXT: Final = 64
"""Samples of the chunk before that go in front of each chunk."""
SPEECH_FROM: Final = 0.5
SHARE_EXPECTED: Final = 0.740
AGREEMENT_EXPECTED: Final = 0.985
TOLERANCE: Final = 0.005


class Voice:
    sample = "silero-vad"
    question = "is somebody speaking?"

    def __init__(self) -> None:
        folder = input_folder("telephone-call")
        self._sound, rate = soundfile.read(folder / "sample.wav", dtype="float32")
        assert rate == RATE_HZ
        rows = [line.split() for line in (folder / "sample.rttm").read_text(encoding="utf-8").splitlines()]
        self._turns = [(float(row[3]), float(row[3]) + float(row[4])) for row in rows]

    def check(self, server: Infers) -> list[Finding]:
        found = speech_probabilities(server, self._sound) > SPEECH_FROM
        middles = (np.arange(len(found)) + 0.5) * CHUNK / RATE_HZ
        truth = np.array([any(start <= middle < end for start, end in self._turns) for middle in middles])
        share, agreement = float(found.mean()), float((found == truth).mean())
        return [
            Finding(
                input="a telephone call of 30 s",
                answer=f"speech in {share:.3f} of {len(found)} chunks",
                expected=f"{SHARE_EXPECTED:.3f}",
                is_right=is_near(share, SHARE_EXPECTED, TOLERANCE),
            ),
            Finding(
                input="the same, against its labels",
                answer=f"{agreement:.3f} of chunks right",
                expected=f"{AGREEMENT_EXPECTED:.3f}",
                is_right=agreement >= AGREEMENT_EXPECTED - TOLERANCE,
            ),
        ]

    def ask(self, server: Infers) -> None:
        _streams.next_chunk(server, self._sound)


def speech_probabilities(server: Infers, sound: Tensor) -> Tensor:
    """The probability of speech in every whole chunk, in order: each call needs the state of the one before."""
    stream = Stream()
    whole = len(sound) // CHUNK * CHUNK
    return np.array([stream.hear(server, sound[start : start + CHUNK]) for start in range(0, whole, CHUNK)])


class Stream:
    """One stream of sound: the state that belongs to it, and the end of what was heard last."""

    def __init__(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._heard = np.zeros(CONTEXT, np.float32)

    def hear(self, server: Infers, chunk: Tensor) -> float:
        """The probability that the chunk is speech."""
        sound = np.concatenate([self._heard, chunk])[None]
        outputs = server.infer("silero-vad", {"input": sound, "state": self._state, "sr": np.array(RATE_HZ, np.int64)})
        self._state, self._heard = outputs["stateN"], chunk[-CONTEXT:]
        return float(outputs["output"][0, 0])


class _Streams(threading.local):
    """A stream for each thread that times: streams must not share a state."""

    def __init__(self) -> None:
        self._stream, self._at = Stream(), 0

    def next_chunk(self, server: Infers, sound: Tensor) -> None:
        if self._at + CHUNK > len(sound):
            self._stream, self._at = Stream(), 0
        self._stream.hear(server, sound[self._at : self._at + CHUNK])
        self._at += CHUNK


_streams = _Streams()
