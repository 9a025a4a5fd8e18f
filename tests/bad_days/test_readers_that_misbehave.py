"""Many readers of streams at once, most of whom leave, lag, half-close or ask for more than they wait for.

Whatever they do, nothing stays behind: no generation, no block of keys and values, no request in flight.
"""

import asyncio
import json
import random
from pathlib import Path

from tests.language import paced
from tests.serving import eventually, request

READERS = 120


def body(chance: random.Random, *, stream: bool) -> bytes:
    return json.dumps(
        {
            "prompt": "x" * chance.randint(1, 200),
            "max_tokens": chance.randint(1, 60),
            "n": chance.choice([1, 1, 1, 3]),
            "seed": chance.randint(0, 99),
            "ignore_eos": True,
            "stream": stream,
            "stop": chance.choice([None, "e", "\n\n"]),
        }
    ).encode()


async def read_a_while(address: tuple[str, int], seed: int) -> str:
    """One reader, whose manners the seed decides; answers with what it did."""
    chance = random.Random(seed)
    await asyncio.sleep(chance.random() * 0.5)
    reader, writer = await asyncio.open_connection(*address, limit=4096)
    manners = chance.choice(
        ["patient", "patient", "leaves", "leaves at once", "half-closes", "pipelines", "whole", "whole, leaves"]
    )
    asked = request("POST", "/v1/completions", body(chance, stream="whole" not in manners))
    writer.write(asked * (3 if manners == "pipelines" else 1))
    try:
        if manners == "leaves at once":
            return manners
        if manners == "half-closes":
            writer.write_eof()
        if manners == "whole, leaves":
            await asyncio.sleep(chance.random() * 0.1)
            return manners
        ends = b"\r\n0\r\n\r\n" if manners != "whole" else b"}"
        wanted = 3 if manners == "pipelines" else 1
        size, tail = 0, b""
        limit = chance.randint(1, 3000) if manners in ("leaves", "pipelines") else 1 << 30
        while size < limit:
            data = await asyncio.wait_for(reader.read(512), 30)
            if not data:
                break
            size += len(data)
            tail = (tail + data)[-4096:]
            wanted -= data.count(b"data: [DONE]")
            if wanted <= 0 and tail.endswith(ends):
                break
            if manners == "whole" and tail.endswith(b"}}"):
                break
        return manners
    finally:
        writer.transport.abort() if chance.random() < 0.5 else writer.close()


def test_nothing_stays_behind(tmp_path: Path) -> None:
    with paced(tmp_path) as (live, runner):
        runner.step_s = 0.001

        async def everybody() -> list[str]:
            return await asyncio.gather(*(read_a_while(live.address, seed) for seed in range(READERS)))

        done = asyncio.run(everybody())
        assert {"patient", "leaves", "leaves at once", "half-closes", "pipelines", "whole", "whole, leaves"} == set(
            done
        )
        runner.step_s = 0.0
        eventually(lambda: live.metric("vllm:num_requests_running") == 0)
        eventually(lambda: live.metric("farthing_http_requests_in_flight") == 1)  # the metrics themselves
        assert live.metric("vllm:num_requests_waiting") == 0
        assert live.metric("vllm:kv_cache_usage_perc") == 0
        answer = live.post("/v1/completions", json.dumps({"prompt": "a", "max_tokens": 4, "ignore_eos": True}).encode())
        assert answer.json["usage"]["completion_tokens"] == 4
        assert live.server is not None
        assert live.on_loop(lambda: live.server._admission.bytes) == 0  # type: ignore[union-attr]
