"""Which format a model on disk has: told by what lies at its path, and opened by the file that reads that format."""

from pathlib import Path

from farthing.llm.checkpoints.checkpoint import Checkpoint
from farthing.llm.checkpoints.gguf_checkpoint import GgufCheckpoint
from farthing.llm.checkpoints.hugging_face import HuggingFaceCheckpoint
from farthing.types.errors import LoadFailed


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at a `.gguf` file, or in a folder of config.json and *.safetensors. Raises `LoadFailed`.

    A folder that holds one `.gguf` file and no config.json stands for that file.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return HuggingFaceCheckpoint(path)
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return GgufCheckpoint(files[0])
        found = f"{len(files)} .gguf files" if files else "neither config.json nor a .gguf file"
        raise LoadFailed(
            f"{path}: a language model's folder holds config.json with *.safetensors, or one .gguf file; here: {found}",
            hint="name the .gguf file itself",
        )
    if not path.is_file():
        raise LoadFailed(f"{path}: no such file or folder")
    return GgufCheckpoint(path)
