"""The language models' benchmark's own sums: what it reads from a stream, what it counts, what it calls met."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.bench.servers import answering

pytest.importorskip("farthing._bench", reason="the native loop was not built")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a file of benchmarks/llm_cpu as the scripts there see each other, and forgets it afterwards."""
    names = {file.stem for folder in (BENCHMARKS, BENCHMARKS / "llm_cpu") for file in folder.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "llm_cpu"))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def chunk(text: str = "", finish: str | None = None) -> bytes:
    body = {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage(prompt: int, completion: int) -> bytes:
    said = {"prompt_tokens": prompt, "completion_tokens": completion}
    return b"data: " + json.dumps({"choices": [], "usage": said}).encode() + b"\n\ndata: [DONE]\n\n"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def coded(*bodies: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


def stream() -> bytes:
    return HEAD + coded(chunk("a"), chunk("b") + chunk("c"), chunk("", "length"), usage(5, 3))


def turn(load: Load, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "engine": "farthing-q8",
        "model": "smollm2-135m",
        "round": 1,
        "is_ours": True,
        "decode": 300.0,
        "prefill": 4000.0,
        "c8": 1000.0,
        "c32": 2000.0,
        "ttft_c1_ms": 20.0,
        "ttft_c8_p95_ms": 100.0,
        "memory_mb": 300.0,
        "start_s": 0.4,
        "streamed_bytes": 100_000_000,
        "read_limit": 40e9,
        "operations_limit": 1e12,
        "body": 100_000_000,
        "head": 28_000_000,
        "generator_cores": 0.1,
        "strangers_cores": 0.0,
    }
    return load("figures").Turn(**(values | changes))


def test_completions_are_asked_for_at_once_and_read_by_the_bench_loop(load: Load) -> None:
    with answering(lambda _number: (0.005, stream())) as port:
        answers = load("load").run(port, "m", [[1, 2, 3, 4, 5]] * 6, 3, 2)
    assert len(answers) == 6
    assert all((one.tokens, one.prompt_tokens) == (3, 5) and one.ttft_s >= 0.005 for one in answers)
    overlaps = sum(one.begin_s < other.begin_s < one.end_s for one in answers for other in answers)
    assert overlaps >= 1, "two at once"


@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + coded(chunk("a")),
        HEAD + coded(chunk("a", "length"), b"data: [DONE]\n\n"),
        HEAD + coded(usage(1, 1)),
        HEAD + coded(b'data: {"error": {"message": "full"}}\n\n'),
        None,
    ],
    ids=["refused", "cut", "uncounted", "silent", "failed", "closed"],
)
def test_what_is_no_whole_answer_is_said(load: Load, received: bytes | None) -> None:
    module = load("load")
    with answering(lambda _number: (0.0, received)) as port, pytest.raises(module.LoadFailed):
        module.run(port, "m", [[1]], 1, 1)


def test_a_whole_answers_rate_is_that_of_the_tokens_after_the_first(load: Load) -> None:
    answer = load("answer").Answer(begin_s=1.0, first_s=3.0, end_s=7.0, prompt_tokens=5, tokens=3)
    assert (answer.ttft_s, answer.decode_rate) == (2.0, pytest.approx(2 / 4))


def test_work_that_was_not_done_is_not_measured(load: Load) -> None:
    answer = load("answer").Answer(begin_s=0, first_s=1, end_s=2, prompt_tokens=4, tokens=7)
    check, failed = load("load").check, load("load").LoadFailed
    check([answer], [[1, 2, 3, 4]], 7)
    with pytest.raises(failed, match="8 tokens"):
        check([answer], [[1, 2, 3, 4]], 8)
    with pytest.raises(failed, match="prompts"):
        check([answer], [[1, 2, 3]], 7)


def test_prompts_are_distinct_and_of_exact_length(load: Load) -> None:
    module = load("prompts")
    prompts = module.Prompts(list(range(1000)))
    taken = prompts.take(3, 10) + prompts.take(2, 20)
    assert [len(prompt) for prompt in taken] == [10, 10, 10, 20, 20]
    assert sorted(token for prompt in taken for token in prompt) == list(range(70))
    prompts.skip_to(0.5)
    assert prompts.take(1, 2) == [[500, 501]]
    with pytest.raises(module.PromptsExhausted):
        prompts.take(5, 100)
    assert len(module.text()) > 300_000


def test_percentiles_are_values_that_were_seen(load: Load) -> None:
    percentile = load("figures").percentile
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([5.0], 0.5) == 5.0


def test_the_aggregate_is_tokens_over_the_time_of_all_of_it(load: Load) -> None:
    answer = load("answer").Answer
    answers = [
        answer(begin_s=10, first_s=11, end_s=12, prompt_tokens=1, tokens=30),
        answer(begin_s=11, first_s=13, end_s=20, prompt_tokens=1, tokens=70),
    ]
    assert load("figures").aggregate_rate(answers) == pytest.approx(10)


def test_shares_are_of_what_the_machine_could_do(load: Load) -> None:
    one = turn(load)
    assert one.decode_share == pytest.approx(300 * 1e8 / 40e9)
    assert one.prefill_share == pytest.approx(4000 * 2e8 / 1e12)
    assert one.aggregate_share(1000) == pytest.approx(1000 * 2 * 228e6 / 1e12)


def test_targets_are_held_against_the_best_peer_of_each_column(load: Load) -> None:
    table = load("table")
    turns = [
        turn(load),
        turn(load, engine="farthing-q8-lookup", decode=9000.0),
        turn(load, engine="slow", is_ours=False, decode=100.0, c8=500.0, ttft_c1_ms=90.0),
        turn(load, engine="fast", is_ours=False, decode=210.0, c8=400.0, ttft_c1_ms=30.0),
    ]
    lines = list(table.target_lines(turns))
    (decode,) = [line for line in lines if "decode tok/s" in line and "times" in line]
    assert decode.startswith("- **missed**")  # 300 / 210, and what lookup gives does not count
    assert "1.43 times fast" in decode
    (eight,) = [line for line in lines if "c8 gen" in line]
    assert eight.startswith("- met")
    assert "2.00 times slow" in eight
    (first,) = [line for line in lines if "TTFT c1" in line]
    assert first.startswith("- **missed**")  # 20 / 30 is more than 0.55


def test_medians_are_over_rounds_and_strangers_are_marked(load: Load) -> None:
    table = load("table")
    turns = [turn(load, round=number, decode=value) for number, value in enumerate((100.0, 300.0, 200.0))]
    turns.append(turn(load, engine="peer", is_ours=False, strangers_cores=0.3))
    text = "\n".join(table._model_table(turns))
    assert "| farthing-q8 | 100 | 200.0 [100.0-300.0] (50%) |" in text
    assert "| ~peer |" in text


def test_a_run_comes_back_from_its_file(load: Load, tmp_path: Path) -> None:
    about = {"date": "2026-11-25", "cores": 2, "cpu": "some", "commit": "abc"}
    run = load("figures").Run(machine=about, engines={}, settings={}, turns=[turn(load)], failures=["x"])
    file = tmp_path / "run.json"
    file.write_text(json.dumps(asdict(run)))
    again = load("table").load(file)
    assert again == run
    assert "- failed: x" in load("table").markdown(again)


def test_runs_of_one_commit_become_one_and_others_do_not(load: Load) -> None:
    run, table = load("figures").Run, load("table")

    def one(commit: str, model: str, *turns: Any) -> Any:
        about = {"date": "d", "cores": 2, "cpu": "some", "commit": commit}
        settings = {"rounds": 1, "is_quick": False, "requests": {model: {"decode": 4}}}
        return run(
            machine=about, engines={t.engine: {} for t in turns}, settings=settings, turns=list(turns), failures=[]
        )

    first, second = one("a", "s", turn(load), turn(load, engine="peer")), one("a", "l", turn(load, decode=1.0))
    both = table.joined([first, second])
    assert [(t.engine, t.round) for t in both.turns] == [("farthing-q8", 1), ("peer", 1), ("farthing-q8", 2)]
    assert both.settings["rounds"] == 2
    assert both.settings["requests"].keys() == {"s", "l"}
    with pytest.raises(ValueError, match="commit"):
        table.joined([first, one("b", "s", turn(load))])


def test_bfloat16_rounds_to_nearest(load: Load) -> None:
    values = np.array([1.0, -2.5, 1.00390625 + 1e-4, 3.0e38], np.float32)
    back = (load("weights").bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    assert np.all(np.abs(back - values) <= np.abs(values) * 2.0**-8)
    assert back[0] == 1.0
    assert back[2] == 1.0078125


def test_rotary_pairs_come_apart_as_hugging_face_has_them(load: Load) -> None:
    side_by_side = np.arange(8, dtype=np.float32)[:, None]  # two heads of two pairs: (0, 1) (2, 3) | (4, 5) (6, 7)
    assert load("weights").halves(side_by_side, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_safetensors_are_written_as_others_read_them(load: Load, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors")
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.full(4, -2, np.float32)}
    shapes = [(name, tensor.shape) for name, tensor in tensors.items()]
    load("weights").write_safetensors(tmp_path / "x.safetensors", shapes, tensors.__getitem__)
    with numpy.safe_open(tmp_path / "x.safetensors", "np") as file:
        assert set(file.keys()) == {"a", "b"}
        assert file.get_slice("a").get_shape() == [2, 3]
        assert file.get_slice("b").get_dtype() == "BF16"


def test_every_engine_has_a_name_a_model_and_known_pins(load: Load) -> None:
    engines = load("engines")
    assert len(engines.BY_NAME) == len(engines.ALL)
    assert all(engine.models and set(engine.models) <= set(load("weights").NAMES) for engine in engines.ALL)
    for pins in engines.PINS.glob("*.txt"):
        assert all("==" in line for line in pins.read_text().splitlines())
