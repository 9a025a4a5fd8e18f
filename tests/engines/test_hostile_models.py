"""Damaged model files end in `LoadFailed`, never in the end of the process.

The damaged files are loaded in a child process, so that a crash is seen as one and not suffered; limits on its
memory turn a file that asks for far too much into a failure too.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.models import identity, model, optional_scale, save, small_convnet, tensor_info, tiny_mlp

import farthing

MEMORY_MAX = 8 << 30
"""Address space of the child; a healthy load of these models takes some 2 GiB of it, nearly all never touched."""

ONNX = [tiny_mlp(), small_convnet(), identity("BYTES"), optional_scale()]

CHILD = """
import json, resource, sys
from pathlib import Path
from farthing.engines.contract import ModelSource
from farthing.engines.registry import engine_named
from farthing.types.errors import LoadFailed

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
engine = engine_named(sys.argv[1])
for line in sys.stdin:
    path = Path(json.loads(line))
    try:
        engine.load(ModelSource(name="m", version=1, path=path, folder=path.parent.parent)).close()
        print("loaded", flush=True)
    except LoadFailed as error:
        assert str(path) in error.message, error
        print("refused", flush=True)
"""


class Loader:
    """A child that loads one file after the other, and is started again should it die."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self._child: subprocess.Popen[str] | None = None

    def load(self, path: Path) -> str:
        """`loaded` or `refused`; what the child said last if it died."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-c", CHILD, self.engine, str(MEMORY_MAX)],
                env={"PYTHONPATH": str(Path(farthing.__file__).parents[1])},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(self.folder / "stderr").open("w"),
                text=True,
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(str(path)) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline().strip()
        if not answer:
            status = self.close()
            return f"died with {status}: {(self.folder / 'stderr').read_text()[-500:]}"
        return answer

    def close(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        child.communicate()
        return child.returncode


@pytest.fixture(scope="module")
def onnxruntime(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    loader = Loader("onnxruntime", tmp_path_factory.mktemp("onnxruntime"))
    yield loader
    loader.close()


@pytest.fixture(scope="module")
def openvino(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    pytest.importorskip("openvino")
    loader = Loader("openvino", tmp_path_factory.mktemp("openvino"))
    yield loader
    loader.close()


def intermediate(folder: Path) -> tuple[bytes, bytes]:
    import openvino

    source = save(folder / "ir", small_convnet())
    path = folder / "ir.xml"
    openvino.save_model(openvino.Core().read_model(str(source.path)), str(path))
    return path.read_bytes(), path.with_suffix(".bin").read_bytes()


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """Cut off, bits flipped, bytes replaced, a stretch copied over another."""
    data = bytearray(original[: draw(st.integers(0, len(original)))] if draw(st.booleans()) else original)
    for _ in range(draw(st.integers(0, 6)) if data else 0):
        # Most of a model is weights, where damage changes nothing but numbers: aim at both ends as well.
        at = draw(st.one_of(*(st.integers(max(0, a), b) for a, b in _aims(len(data)))))
        match draw(st.sampled_from(["flip", "replace", "copy"])):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                data[at] = draw(st.integers(0, 255))
            case _:
                size, source = draw(st.integers(1, 40)), draw(st.integers(0, len(data) - 1))
                data[at : at + size] = data[source : source + size]
    return bytes(data)


def _aims(size: int) -> list[tuple[int, int]]:
    last = size - 1
    return [(0, last), (0, min(last, 300)), (last - 300, last)]


PATIENT = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@PATIENT
@given(st.one_of(st.binary(max_size=300), st.sampled_from(ONNX).flatmap(damaged)))
def test_onnxruntime_survives_damaged_files(onnxruntime: Loader, data: bytes) -> None:
    assert onnxruntime.load(save(onnxruntime.folder, data).path) in ("loaded", "refused")


@PATIENT
@given(st.one_of(st.binary(max_size=300), st.sampled_from([*ONNX[:2], ONNX[3]]).flatmap(damaged)))
def test_openvino_survives_damaged_onnx_files(openvino: Loader, data: bytes) -> None:
    assert openvino.load(save(openvino.folder, data).path) in ("loaded", "refused")


@PATIENT
@given(st.data())
def test_openvino_survives_damaged_ir(openvino: Loader, data: st.DataObject) -> None:
    if not (openvino.folder / "ir.xml").exists():
        intermediate(openvino.folder)
    xml, weights = ((openvino.folder / name).read_bytes() for name in ("ir.xml", "ir.bin"))
    source = save(openvino.folder, data.draw(damaged(xml)), "model.xml")
    source.path.with_suffix(".bin").write_bytes(data.draw(st.one_of(st.just(weights), damaged(weights))))
    assert openvino.load(source.path) in ("loaded", "refused")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_undamaged_files_load_in_the_same_child(engine: str, request: pytest.FixtureRequest) -> None:
    loader: Loader = request.getfixturevalue(engine)
    assert loader.load(save(loader.folder, tiny_mlp()).path) == "loaded"
    assert loader.load(save(loader.folder, model([], [], [])[:9]).path) == "refused"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rows", [10**9, 2**40, 2**62])
def test_absurd_shapes_end_no_process(engine: str, rows: int, request: pytest.FixtureRequest) -> None:
    from onnx import helper

    node = helper.make_node("Add", ["x", "x"], ["y"])
    ports = [[tensor_info(name, "FP32", [rows, 4])] for name in "xy"]
    loader: Loader = request.getfixturevalue(engine)
    assert loader.load(save(loader.folder, model([node], *ports)).path) in ("loaded", "refused")
