"""Mistral: a Llama whose layers, in its first versions, see the last 4,096 keys only.

Jiang et al., arXiv 2310.06825. GGUF files call it `llama`.
"""

from farthing.llm.architectures import llama
from farthing.llm.architectures.family import Family, gguf_sources, hugging_face_sources
from farthing.llm.architectures.settings import Settings
from farthing.llm.architectures.shared import config_rotary, config_sizes, config_window
from farthing.llm.spec import DecoderSpec, RotaryKind


def of_config(config: Settings) -> DecoderSpec:
    config.one_of("hidden_act", ("silu",), "silu")
    sizes = config_sizes(config)
    layers = sizes["layers"]
    return DecoderSpec(
        architecture="mistral",
        **sizes,
        rotary_kind=RotaryKind.HALVES,
        rotaries=(config_rotary(config, sizes),),
        rotary_of_layer=(0,) * layers,
        window_of_layer=(config_window(config, sizes),) * layers,
        attention_scale=sizes["head_size"] ** -0.5,
        ties_head=config.flag("tie_word_embeddings", False),
    )


FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    spec_of_config=of_config,
    sources_of_config=hugging_face_sources,
    spec_of_metadata=llama.of_metadata,
    sources_of_metadata=gguf_sources,
)
