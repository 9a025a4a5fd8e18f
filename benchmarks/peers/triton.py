"""NVIDIA Triton Inference Server: its real binary, HTTP front-end, batcher and python back end, from the
`nvidia-pytriton` wheel.

Its C++ ONNX Runtime back end is in no package, so models run in onnxruntime inside the python back end; what the
C++ back end would do is known from other measurements only and is not in these tables.
"""

import os
import shutil
import sysconfig
from pathlib import Path

from models import Model
from peers.contract import INSIDE, Launch, Peer, folder, free_port

TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}


def config(model: Model, *, batches: bool) -> str:
    """The config.pbtxt that such a model needs: the batch dimension is left out of the dims."""

    def tensors(kind: str, arrays: dict[str, object]) -> str:
        lines = ",\n".join(
            f'  {{ name: "{name}" data_type: {TYPES[array.dtype.name]} dims: {list(array.shape[1:])} }}'  # type: ignore[attr-defined]
            for name, array in arrays.items()
        )
        return f"{kind} [\n{lines}\n]\n"

    return (
        f'name: "{model.name}"\nbackend: "python"\nmax_batch_size: 32\n'
        + tensors("input", dict(model.row))
        + tensors("output", dict(model.answer))
        + "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
        + f'parameters {{ key: "file" value: {{ string_value: "{model.file}" }} }}\n'
        + ("dynamic_batching { }\n" if batches else "")
    )


def _launch(model: Model, port: int, work: Path, *, batches: bool) -> Launch:
    home = folder("triton")
    packages = home / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    server = packages / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / sysconfig.get_python_version() / "triton_python_backend_stub"
    repository = work / "repository" / model.name
    (repository / "1").mkdir(parents=True)
    (repository / "config.pbtxt").write_text(config(model, batches=batches))
    shutil.copyfile(INSIDE / "triton_model.py", repository / "1" / "model.py")
    # The back end looks for its interpreter beside its library; the wheel keeps one for each Python elsewhere.
    backend = work / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (*(server / "backends" / "python").iterdir(), stub):
        (backend / file.name).symlink_to(file)
    command = [
        *(str(server / "bin" / "tritonserver"), "--model-repository", str(repository.parent)),
        *("--backend-directory", str(backend.parent)),
        *("--http-address", "127.0.0.1", "--http-port", str(port), "--allow-grpc", "false"),
        *("--metrics-address", "127.0.0.1", "--metrics-port", str(free_port()), "--log-info", "false"),
    ]
    # The back end's interpreter is linked to libpython and to libraries of the wheel.
    libraries = [os.environ.get("LD_LIBRARY_PATH", ""), str(packages / "nvidia_pytriton.libs")]
    libraries.append(str(sysconfig.get_config_var("LIBDIR")))
    # It ignores PYTHONPATH and takes the packages of the first python3 on the path.
    environment = {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
    }
    return Launch(command=command, environment=environment)


def _peer(name: str, word: str, *, batches: bool) -> Peer:
    return Peer(
        name=name,
        about=f"Triton's binary and HTTP front-end, python back end running onnxruntime, dynamic batching {word}",
        launch=lambda model, port, work: _launch(model, port, work, batches=batches),
        environment="triton",
        main_package="nvidia-pytriton",
    )


PEERS = (_peer("triton", "off", batches=False), _peer("triton-dynbatch", "on", batches=True))
