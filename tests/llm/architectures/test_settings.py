"""Whatever stands in a configuration, a page answers with a decoder or with an error that names the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.llm.architectures.small_models import GEMMA, LONG, SIZES, YARN

from farthing.llm.architectures import FAMILIES, Family
from farthing.llm.architectures.settings import Settings
from farthing.llm.spec import tensor_shapes
from farthing.types.errors import LoadFailed

CONFIG: dict[str, Any] = {
    **SIZES,
    **GEMMA,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "use_sliding_window": True,
    "rope_scaling": {**YARN, **LONG, "rope_type": "yarn"},
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": 64,
    "attn_logit_softcapping": None,
    "tie_word_embeddings": False,
    "sliding_window_pattern": 3,
    "rope_local_base_freq": 10_000.0,
}
METADATA: dict[str, Any] = {
    "block_count": 3,
    "context_length": 128,
    "embedding_length": 32,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.key_length": 8,
    "attention.value_length": 8,
    "attention.sliding_window": 8,
    "attention.sliding_window_pattern": np.array([True, False, True]),
    "attention.scale": 0.25,
    "rope.freq_base": 10_000.0,
    "rope.dimension_count": 8,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "attn_logit_softcapping": 50.0,
}
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["yarn", "longrope", "llama3"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*LONG, *YARN, "x"]), inner, max_size=4)
    ),
    max_leaves=6,
)


class Tensors:
    """A file whose embedding is there and whose rotary factors are not."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        return (96, 32) if name == "token_embd.weight" else None

    def read(self, name: str) -> NDArray[np.float32] | None:
        return None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@settings(max_examples=120, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(CONFIG)), ANYTHING, max_size=2), scaling=ANYTHING)
def test_any_configuration_is_understood_or_refused(family: Family, changes: dict[str, Any], scaling: Any) -> None:
    rope = {**CONFIG["rope_scaling"], **(scaling if isinstance(scaling, dict) else {})}
    config = Settings(Path("config.json"), {**CONFIG, "rope_scaling": rope, **changes})
    try:
        spec = family.spec_of_config(config)
    except LoadFailed as refused:
        told = refused.message
    else:
        told = "config.json"
        assert set(family.sources_of_config(spec)) == set(tensor_shapes(spec))
        assert len(spec.rotary_of_layer) == len(spec.window_of_layer) == spec.layers
    assert "config.json" in told


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@settings(max_examples=120, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(METADATA)), ANYTHING, max_size=2))
def test_any_metadata_is_understood_or_refused(family: Family, changes: dict[str, Any]) -> None:
    own = {f"x.{name}": value for name, value in {**METADATA, **changes}.items()}
    try:
        spec = family.spec_of_metadata(Settings(Path("model.gguf"), own, prefix="x."), Tensors())
    except LoadFailed as refused:
        told = refused.message
    else:
        told = "model.gguf"
        assert set(family.sources_of_metadata(spec)) == set(tensor_shapes(spec))
        assert len(spec.rotary_of_layer) == len(spec.window_of_layer) == spec.layers
    assert "model.gguf" in told


def test_sources_name_every_tensor_once_and_no_other() -> None:
    for family in FAMILIES:
        spec = family.spec_of_config(Settings(Path("config.json"), CONFIG))
        for sources in (family.sources_of_config(spec), family.sources_of_metadata(spec)):
            taken = [(source.name, source.rows) for source in sources.values()]
            assert len(set(taken)) == len(taken) == len(tensor_shapes(spec))
