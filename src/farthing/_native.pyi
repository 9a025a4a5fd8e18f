"""The native core: packed weights, the forward pass, the sampler. Sources in native/."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TILE: Final[int]

class Runner:
    def __init__(
        self,
        config: Mapping[str, Any],
        weights: NDArray[np.uint8],
        offsets: Mapping[str, int],
        *,
        kv: str,
        blocks: int,
        threads: int,
    ) -> None: ...
    def run(
        self,
        tokens: NDArray[np.int32],
        sequences: Sequence[tuple[int, int, NDArray[np.int32]]],
        logits_rows: NDArray[np.int32],
    ) -> NDArray[np.float32]: ...
    def run_likeliest(
        self,
        tokens: NDArray[np.int32],
        sequences: Sequence[tuple[int, int, NDArray[np.int32]]],
        logits_rows: NDArray[np.int32],
    ) -> tuple[list[int], list[float]]: ...
    def copy_block(self, source: int, target: int) -> None: ...
    def take_profile(self) -> list[tuple[str, float]]: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def populated_blocks(self) -> int: ...
    @property
    def isa(self) -> str: ...
    def close(self) -> None: ...

def isa() -> str: ...
def has_wide_rows() -> bool: ...
def into_huge_pages(data: NDArray[np.uint8]) -> int: ...
def rows_max(mode: str) -> int: ...
def matrix_bytes(mode: str, outputs: int, inputs: int, block: int) -> int: ...
def pack_nothing(mode: str, out: NDArray[np.uint8], outputs: int, inputs: int, block: int) -> None: ...
def pack_rows(
    mode: str,
    rows: NDArray[np.float32],
    to: NDArray[np.int32],
    out: NDArray[np.uint8],
    outputs: int,
    inputs: int,
    block: int,
    threads: int,
) -> None: ...
def pack_q4_blocks(
    mode: str,
    kind: str,
    rows: NDArray[np.uint8],
    to: NDArray[np.int32],
    out: NDArray[np.uint8],
    outputs: int,
    inputs: int,
    threads: int,
) -> None: ...
def checksum(data: NDArray[np.uint8], threads: int) -> int: ...
def sample(logits: NDArray[np.float32], draws: Sequence[tuple[int, Any, int, Sequence[int]]]) -> list[int]: ...
def likelihoods(
    logits: NDArray[np.float32], rows: Sequence[int], tokens: Sequence[int], top: int
) -> list[tuple[float, list[int], list[float]]]: ...
def linear(
    mode: str,
    rows: NDArray[np.float32],
    packed: NDArray[np.uint8],
    outputs: int,
    inputs: int,
    block: int,
    part: int,
    rows_max: int,
) -> NDArray[np.float32]: ...
def read_rate(data: NDArray[np.uint8], threads: int, rounds: int) -> float: ...
def operation_rate(threads: int, seconds: float) -> float: ...
