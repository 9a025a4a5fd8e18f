"""Which notes sound? Basic Pitch on two seconds of a chord made here."""

from typing import Final

import numpy as np

from farthing.cli.demo_tasks.task import Finding, Infers
from farthing.types.tensors import Tensor

RATE_HZ: Final = 22_050
SAMPLES: Final = 43_844
LOWEST_NOTE: Final = 21
"""MIDI number of the first of the model's 88 keys, as on a piano."""
INPUT: Final = "serving_default_input_2:0"
NOTES: Final = "StatefulPartitionedCall:1"

EXPECTED: Final = (("C major", (60, 64, 67)), ("A minor", (57, 60, 64)))


class Notes:
    sample = "basic-pitch"
    question = "which notes sound?"

    def __init__(self) -> None:
        self._chords = [chord(notes)[None, :, None] for _, notes in EXPECTED]

    def check(self, server: Infers) -> list[Finding]:
        findings = []
        for (name, expected), sound in zip(EXPECTED, self._chords, strict=True):
            strength = server.infer("basic-pitch", {INPUT: sound}, [NOTES])[NOTES][0].mean(axis=0)
            found = sorted(int(key) + LOWEST_NOTE for key in np.argsort(-strength)[: len(expected)])
            findings.append(
                Finding(
                    input=f"{name}, MIDI numbers",
                    answer=" ".join(map(str, found)),
                    expected=" ".join(map(str, expected)),
                    is_right=tuple(found) == expected,
                )
            )
        return findings

    def ask(self, server: Infers) -> None:
        server.infer("basic-pitch", {INPUT: self._chords[0]}, [NOTES])


def chord(notes: tuple[int, ...]) -> Tensor:
    """Two seconds of notes with four harmonics each, as loud as fits."""
    seconds = np.arange(SAMPLES) / RATE_HZ
    sound = np.zeros(SAMPLES)
    for note in notes:
        frequency_hz = 440 * 2 ** ((note - 69) / 12)
        for harmonic in range(1, 5):
            sound += np.sin(2 * np.pi * frequency_hz * harmonic * seconds) / harmonic
    return np.asarray(sound / (np.abs(sound).max() * 1.2), np.float32)
