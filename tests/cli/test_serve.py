"""`farthing serve` with a language model takes no more memory than it said, and no processor while nobody asks."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.serving import Live, serve_process

from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.packing import packed_weights
from farthing.repository.samples import sample_path

MB = 1 << 20
KV_MB = 64
ELSE_MB = 150
"""For Python, the runtimes' code and what a step needs, beside weights and the KV pool."""
TOKENS = 64
LONG_S = 100.0
"""What 32 generations at once may take where a processor has AVX2 alone and other tests run beside."""

pytestmark = [
    pytest.mark.samples,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's accounts of processes"),
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    kv = ("--llm-kv-memory", f"{KV_MB}MB")
    with serve_process(tmp_path_factory.mktemp("serve"), "sample:smollm2-135m", *kv) as live:
        yield live


def resident_bytes(live: Live) -> int:
    assert live.process is not None
    found = re.search(r"^Rss:\s+(\d+) kB", Path(f"/proc/{live.process.pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def cpu_ticks(live: Live) -> int:
    """Hundredths of a second that the server has computed."""
    assert live.process is not None
    fields = Path(f"/proc/{live.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def generated(live: Live, number: int) -> int:
    asked = {
        "model": "smollm2-135m",
        "prompt": [(number * 37 + at) % 40_000 + 5 for at in range(128)],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": number % 2,
    }
    answer = live.post("/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}, LONG_S)
    assert answer.status == 200, answer.body
    tokens: int = json.loads(answer.body)["usage"]["completion_tokens"]
    return tokens


def test_memory_is_weights_keys_and_values_and_little_else(live: Live) -> None:
    model = sample_path("smollm2-135m") / "1" / "model.gguf"
    weights = packed_weights(open_checkpoint(model), "q8", threads=2).data.nbytes
    with ThreadPoolExecutor(32) as people:
        for wave in range(3):
            numbers = range(100 * wave, 100 * wave + 32)
            assert set(people.map(generated, [live] * 32, numbers)) == {TOKENS}
            assert resident_bytes(live) <= weights + (KV_MB + ELSE_MB) * MB


def test_while_nobody_asks_nothing_is_computed(live: Live) -> None:
    generated(live, 0)
    time.sleep(0.2)
    before = cpu_ticks(live)
    time.sleep(2)
    assert cpu_ticks(live) - before <= 2
