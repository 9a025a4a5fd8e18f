"""Every family there is a page for, found by what a checkpoint calls itself."""

from pathlib import Path
from typing import Final

from farthing.llm.architectures import gemma, llama, mistral, phi3, qwen
from farthing.llm.architectures.family import Family
from farthing.types.errors import LoadFailed

FAMILIES: Final[tuple[Family, ...]] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen.QWEN2,
    qwen.QWEN3,
    gemma.GEMMA2,
    gemma.GEMMA3,
    phi3.FAMILY,
)


def family_of_hugging_face(where: Path, model_type: str) -> Family:
    """The page for config.json's `model_type`. Raises `LoadFailed` listing those there are."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise _unknown(where, model_type, known)


def family_of_gguf(where: Path, architecture: str) -> Family:
    """The page for GGUF's `general.architecture`. Raises `LoadFailed` listing those there are."""
    for family in FAMILIES:
        if architecture in family.gguf_architectures:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.gguf_architectures)
    raise _unknown(where, architecture, known)


def _unknown(where: Path, name: str, known: str) -> LoadFailed:
    return LoadFailed(
        f"{where}: architecture `{name[:100]}` is not known; known: {known}",
        hint="a family is a page in farthing/llm/architectures",
    )
