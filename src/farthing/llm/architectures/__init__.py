"""Families of decoders, a page each: how a checkpoint's configuration becomes a `DecoderSpec`, and what its tensors
are called. Data only; there is no forward code here.
"""

from farthing.llm.architectures.family import Family, Source
from farthing.llm.architectures.known import FAMILIES, family_of_gguf, family_of_hugging_face

__all__ = ["FAMILIES", "Family", "Source", "family_of_gguf", "family_of_hugging_face"]
