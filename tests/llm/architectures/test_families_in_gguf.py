"""The same models as GGUF files compute the same: names, permuted rows, added ones and rotary factors are undone."""

from pathlib import Path

import numpy as np
import pytest
from tests.llm.architectures.gguf_files import write_gguf
from tests.llm.architectures.small_models import VARIANTS, saved

from farthing.llm.architectures import FAMILIES
from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.runners.reference import ReferenceRunner
from farthing.llm.runners.runner import Step, StepSequence
from farthing.llm.spec import tensor_shapes
from farthing.types.errors import LoadFailed

torch = pytest.importorskip("torch", reason="the models compared are made by transformers, which needs torch")
pytest.importorskip("transformers", reason="the models compared are made by transformers")
gguf = pytest.importorskip("gguf", reason="GGUF files for comparison are written by the `gguf` package")

TOKENS = np.random.default_rng(3).integers(3, 96, 50).astype(np.int32)
NOT_IN_GGUF = {"qwen2-sliding": "GGUF's qwen2 has no windows"}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in NOT_IN_GGUF])
def test_a_gguf_file_of_it_has_the_same_logits(variant: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = saved(variant, tmp_path / "folder")
    write_gguf(model, tmp_path / "model.gguf")
    runner = ReferenceRunner(open_checkpoint(tmp_path / "model.gguf"), blocks=2)
    rows = np.arange(len(TOKENS), dtype=np.int32)
    ours = runner.run(Step(TOKENS, (StepSequence(len(TOKENS), 0, np.array([1, 0])),), rows))
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("variant", ["llama", "gemma2", "phi3"])
def test_quantised_rows_are_cut_where_projections_are_fused(variant: str, tmp_path: Path) -> None:
    model = saved(variant, tmp_path / "folder", hidden_size=64)
    write_gguf(model, tmp_path / "model.gguf", kind="Q8_0")
    exact, packed = open_checkpoint(tmp_path / "folder"), open_checkpoint(tmp_path / "model.gguf")
    kinds = set()
    for name, shape in tensor_shapes(packed.spec).items():
        stored = packed.stored(name)
        kinds.add(stored.kind)
        assert packed.tensor(name).shape == stored.shape == shape
        assert packed.tensor(name).flags.c_contiguous
        if variant == "llama" and name[-2:] in {".q", ".k"}:
            continue  # permuted
        np.testing.assert_allclose(packed.tensor(name), exact.tensor(name), atol=np.abs(exact.tensor(name)).max() / 200)
    assert kinds == {"F32", "Q8_0"}


def test_a_norm_that_adds_to_one_is_given_in_float32(tmp_path: Path) -> None:
    saved("gemma2", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    stored = checkpoint.stored("layers.0.ffn_norm")
    assert stored.kind == "F32"
    np.testing.assert_array_equal(np.frombuffer(stored.data, np.float32), checkpoint.tensor("layers.0.ffn_norm"))


def test_every_family_is_held_against_transformers_in_both_formats() -> None:
    import transformers

    proved = {getattr(transformers, f"{name}Config").model_type for name, _ in VARIANTS.values()}
    assert proved == {kind for family in FAMILIES for kind in family.model_types}


def test_an_unknown_architecture_is_answered_with_those_there_are(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "bloom")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(LoadFailed, match=r"`bloom` is not known; known: llama, qwen2, qwen3, gemma2, gemma3, phi3"):
        open_checkpoint(tmp_path / "model.gguf")
