"""Language models among the others: where they may stand on disk, how they come and go, what an operator may set."""

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.language import CONTEXT, paced, talking, write_tiny_model
from tests.serving import Live, eventually, request, serve_process, serving

from farthing.config.server import LanguageSettings, ModelControl, WeightsPrecision
from farthing.repository import Repository
from farthing.runtime.load_any import is_language_model

ASK = json.dumps({"prompt": "hello", "temperature": 0, "max_tokens": 8, "ignore_eos": True}).encode()


def said(live: Live, model: str) -> str:
    reply = live.post("/v1/completions", json.dumps({"model": model, **json.loads(ASK)}).encode())
    assert reply.status == 200, reply.body
    text: str = reply.json["choices"][0]["text"]
    return text


def test_a_folder_of_hugging_face_stands_wherever_a_model_may(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "models" / "plain")
    write_tiny_model(tmp_path / "models" / "versioned" / "1", seed=4)
    write_tiny_model(tmp_path / "models" / "versioned" / "2", seed=5)
    write_tiny_model(tmp_path / "alone")
    with serving(tmp_path / "models", tmp_path / "alone") as live:
        ids = [model["id"] for model in live.get("/v1/models").json["data"]]
        assert ids == ["alone", "plain", "versioned"]
        assert said(live, "alone") == said(live, "plain") != said(live, "versioned")
        unnamed = live.post("/v1/completions", ASK)
        assert (unnamed.status, unnamed.json["error"]["param"]) == (400, "model")
        assert "alone, plain, versioned" in unnamed.json["error"]["message"]


def test_a_snapshot_in_hugging_faces_cache_is_served_by_the_models_name(tmp_path: Path) -> None:
    """Its files are links to blobs beside it; links that lead elsewhere are refused as ever."""
    hub = tmp_path / "models--someone--Tiny-1"
    blobs, snapshot = write_tiny_model(hub / "blobs"), hub / "snapshots" / "4fd2"
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    with serving(snapshot) as live:
        assert [model["id"] for model in live.get("/v1/models").json["data"]] == ["Tiny-1"]
        assert said(live, "Tiny-1")
    (snapshot / "notes.txt").symlink_to("/etc/hostname")
    (problem,) = Repository([snapshot]).scan().problems.values()
    assert "leads out" in problem.reason


def test_what_is_a_language_model(tmp_path: Path) -> None:
    assert is_language_model(tmp_path / "a.gguf", "")
    assert is_language_model(tmp_path, "")
    assert is_language_model(tmp_path / "weights.bin", "llm")
    assert not is_language_model(tmp_path / "a.onnx", "")
    assert not is_language_model(tmp_path / "a.gguf", "onnxruntime")


def test_packed_weights_beside_a_model_are_no_change_of_it(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")
    repository = Repository([tmp_path])
    before = repository.scan().models["tiny"].fingerprint
    (tmp_path / "tiny" / "tiny.q8.farthing-packed").write_bytes(b"x")
    assert repository.scan().models["tiny"].fingerprint == before


def test_a_model_is_loaded_replaced_and_unloaded_while_others_serve(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")
    with serving(tmp_path, model_control=ModelControl.EXPLICIT) as live:
        assert live.get("/v1/models").json["data"] == []
        assert live.post("/v1/completions", ASK).status == 400
        assert live.post("/v2/repository/models/tiny/load").status == 200
        first = said(live, "tiny")
        shutil.rmtree(tmp_path / "tiny")
        write_tiny_model(tmp_path / "tiny", seed=9)
        fingerprint = live.post("/v1/completions", ASK).json["system_fingerprint"]
        assert live.post("/v2/repository/models/tiny/load").status == 200
        assert said(live, "tiny") != first
        assert live.post("/v1/completions", ASK).json["system_fingerprint"] != fingerprint
        assert live.post("/v2/repository/models/tiny/unload").status == 200
        eventually(lambda: live.post("/v2/repository/index").json[0]["state"] == "UNAVAILABLE")
        gone = live.post("/v1/completions", json.dumps({"model": "tiny", "prompt": "x"}).encode())
        assert (gone.status, gone.json["error"]["code"]) == (404, "model_not_found")


def test_an_unload_lets_what_is_under_way_end(tmp_path: Path) -> None:
    with (
        paced(tmp_path, model_control=ModelControl.EXPLICIT, load_models=("tiny",)) as (live, runner),
        live.connect() as wire,
    ):
        runner.step_s = 0.02
        wire.send(request("POST", "/v1/completions", ASK))
        eventually(lambda: live.metric("vllm:num_requests_running") == 1)
        assert live.post("/v2/repository/models/tiny/unload").status == 200
        assert wire.read_reply().json["usage"]["completion_tokens"] == 8


def test_settings_are_the_servers_or_the_models_own(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "models" / "own")
    (folder / "model.toml").write_text('[parameters]\ncontext_tokens = { string_value = "64" }\n')
    write_tiny_model(tmp_path / "models" / "other")
    settings = LanguageSettings(context_tokens=100, kv_memory_bytes=1 << 20, weights=WeightsPrecision.F32)
    with serving(tmp_path / "models", language=settings) as live:
        lengths = {model["id"]: model["max_model_len"] for model in live.get("/v1/models").json["data"]}
        assert lengths == {"own": 64, "other": 100}


def test_kv_memory_bounds_the_context(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")
    with serving(tmp_path, language=LanguageSettings(kv_memory_bytes=128 * 1024)) as live:
        (model,) = live.get("/v1/models").json["data"]
        assert 0 < model["max_model_len"] < CONTEXT
        assert live.metric("farthing_kv_cache_tokens") == model["max_model_len"]


def test_models_share_the_memory_that_is_free(tmp_path: Path) -> None:
    """Each gets half of what the others leave, though none has touched its part yet."""
    for number in range(3):
        write_tiny_model(tmp_path / f"tiny{number}", context=1 << 15)
    with mock.patch("farthing.runtime.memory.free_bytes", return_value=16 << 20), serving(tmp_path) as live:
        held = [live.metric("farthing_kv_cache_tokens", model_name=f"tiny{number}") * 288 for number in range(3)]
        assert sum(held) < 16 << 20
        assert max(held) > 3 * min(held) > 0


@pytest.mark.parametrize(
    ("language", "words"),
    [
        (LanguageSettings(kv_memory_bytes=1000), "too little"),
        (None, "parameters"),
    ],
)
def test_what_cannot_be_had_is_said(tmp_path: Path, language: LanguageSettings | None, words: str) -> None:
    folder = write_tiny_model(tmp_path / "models" / "tiny")
    if language is None:
        (folder / "model.toml").write_text('[parameters]\nthreads = { string_value = "many" }\n')
    with serving(tmp_path / "models", language=language or LanguageSettings()) as live:
        (line,) = live.post("/v2/repository/index").json
        assert line["state"] == "UNAVAILABLE"
        assert words in line["reason"]


def test_a_model_that_answers_with_no_numbers_is_not_served(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with serving(tmp_path, language=LanguageSettings(weights=WeightsPrecision.F32)) as live:
        (line,) = live.post("/v2/repository/index").json
        assert line["state"] == "UNAVAILABLE"
        assert "no numbers" in line["reason"]


def test_a_models_own_defaults_hold_where_a_request_is_silent(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "cold", defaults={"temperature": 0.0})
    with serving(tmp_path) as live:
        body = json.dumps({"prompt": "a", "max_tokens": 8, "ignore_eos": True}).encode()
        texts = {live.post("/v1/completions", body).json["choices"][0]["text"] for _ in range(3)}
        assert len(texts) == 1


def test_farthing_serve_says_what_it_settled_and_how_to_ask(tmp_path: Path) -> None:
    import shlex
    import subprocess

    model = write_tiny_model(tmp_path / "tiny")
    options = ("--llm-context", "200", "--llm-kv-memory", "3MB", "--llm-weights", "f32", "--llm-threads", "1")
    with serve_process(tmp_path, model, *options) as live:
        assert live.log is not None
        eventually(lambda: "try it:" in live.log.read_text())  # type: ignore[union-attr]
        words = live.log.read_text()
        assert "context 200 tokens" in words
        assert "in f32" in words
        line = next(line for line in words.splitlines() if line.strip().startswith("curl"))
        asked = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=20, check=True)
        assert asked.stdout.endswith("data: [DONE]\n\n")


def test_the_statistics_extension_counts_generations(tmp_path: Path) -> None:
    with talking(tmp_path) as live:
        said(live, "tiny")
        counted = live.get("/v2/models/tiny/stats").json["model_stats"][0]
        assert counted["inference_count"] == 1
        assert counted["inference_stats"]["success"]["count"] == 1
