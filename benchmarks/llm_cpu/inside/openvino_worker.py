"""OpenVINO GenAI's continuous batching in a process of its own: `openvino_worker.py FOLDER CACHE_GB BATCH_TOKENS`.

Says one JSON line with the time of its first token, then answers each line of {"prompts", "tokens", "at_once"} with
the times of what it generated. Runs in the peer's environment and imports nothing of the benchmark.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai


def generate(pipe: Any, prompts: list[list[int]], tokens: int, at_once: int) -> list[dict[str, float]]:
    """All prompts, `at_once` at a time: the next one is added when one has ended, as clients would."""
    config = genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    waiting = list(reversed(list(enumerate(prompts))))
    running: dict[int, tuple[Any, dict[str, float]]] = {}
    answers = []
    while waiting or running:
        while waiting and len(running) < at_once:
            number, prompt = waiting.pop()
            begin = time.monotonic()
            handle = pipe.add_request(number, ov.Tensor(np.array([prompt], np.int64)), config)
            said = {"begin_s": begin, "first_s": 0.0, "end_s": 0.0, "tokens": 0, "prompt_tokens": len(prompt)}
            running[number] = (handle, said)
        pipe.step()
        now = time.monotonic()
        for number, (handle, said) in list(running.items()):
            while handle.can_read():
                got = sum(len(one.generated_ids) for one in handle.read().values())
                if got:
                    said["first_s"] = said["first_s"] or now
                    said["end_s"] = now
                    said["tokens"] += got
            if said["tokens"] >= tokens:
                answers.append(said)
                del running[number]
    while pipe.has_non_finished_requests():
        pipe.step()
    return answers


def main() -> None:
    folder, cache_gb, batch_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = cache_gb
    scheduler.enable_prefix_caching = False
    if batch_tokens:
        scheduler.max_num_batched_tokens = batch_tokens
    pipe = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU")
    generate(pipe, [[1, 2, 3, 4, 5, 6, 7, 8]], 1, 1)
    print(json.dumps({"ready_s": time.monotonic()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(generate(pipe, asked["prompts"], asked["tokens"], asked["at_once"])), flush=True)


if __name__ == "__main__":
    main()
