"""Models with `infer`: loaded, run, and judged by what they promised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farthing.engines.contract import Batch, Member, MemberAnswer, ModelSource
from farthing.engines.python import Python
from farthing.engines.registry import engine_for
from farthing.types.errors import EngineFailed, InvalidInput, LoadFailed
from farthing.types.tensors import NUMPY_DTYPES, TensorSpec

ECHO = """
    from farthing import Tensor

    class Echo:
        inputs = [Tensor("x", {datatype!r}, [-1, 2])]
        outputs = [Tensor("y", {datatype!r}, [-1, 2])]
        batch = True

        def infer(self, inputs):
            return {{"y": inputs["x"]}}
"""

FLOATS = np.array([[1, 2], [3, 4]], np.float32)


def test_a_py_file_is_known_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "anything.py"
    file.write_text("raise SystemExit('never run in the server')")
    assert Python().recognises(file)
    assert not Python().recognises(tmp_path)
    assert not Python().recognises(tmp_path / "other.onnx")
    assert engine_for(file).name == "python"


def test_a_model_says_what_it_takes_and_gives(load_model: Any, run_alone: Any) -> None:
    model = load_model(
        """
        from farthing import Tensor

        class Sum:
            inputs = [Tensor("x", "FP32", [-1, 4]), Tensor("bias", "FP32", [-1, 1], optional=True)]
            outputs = [Tensor("sum", "FP32", [-1, 1], labels=["total"])]
            max_batch_size = 64

            def infer(self, inputs):
                return {"sum": inputs["x"].sum(axis=1, keepdims=True) + inputs.get("bias", 0)}
        """
    )
    assert model.platform == "python"
    assert model.batch_axis is True
    assert model.batch_rows_max == 64
    assert model.inputs[1] == TensorSpec(name="bias", datatype="FP32", shape=(-1, 1), is_optional=True)
    assert model.outputs[0].labels == ("total",)
    assert not model.is_pure
    assert not model.can_run_on_event_loop
    assert model.health() == ""
    assert run_alone(model, x=np.ones((3, 4), np.float32))["sum"].tolist() == [[4], [4], [4]]


@pytest.mark.parametrize("datatype", list(NUMPY_DTYPES))
def test_every_datatype_passes_through(load_model: Any, run_alone: Any, datatype: str) -> None:
    model = load_model(ECHO.format(datatype=datatype))
    x = np.array([[0, 1], [1, 0], [1, 1]]).astype(NUMPY_DTYPES[datatype])
    if datatype == "BYTES":
        x = np.array([[b"", b"a\0b"], [b"\xff", "ü".encode()], [b"x" * 70_000, b"z"]], object)
    for rows in (3, 1, 0):
        y = run_alone(model, x=x[:rows])["y"]
        assert y.dtype == x.dtype
        assert y.shape == (rows, 2)
        assert y.tolist() == x[:rows].tolist()


def test_load_and_infer_may_ask_for_what_they_need(load_model: Any) -> None:
    model = load_model(
        """
        from farthing import Context, Request, Tensor
        import beside

        class Model:
            inputs = [Tensor("x", "INT64", [-1])]
            outputs = [Tensor("y", "INT64", [-1])]
            max_batch_size = 8

            def load(self, context: Context):
                self.step = int(context.parameters["step"]) * beside.ONE
                assert context.name == "mine" and context.version == 1 and context.instance == 0
                assert (context.folder / "1" / "model.py").samefile(context.file)

            def infer(self, inputs, requests: list[Request]):
                for request in requests:
                    if request.parameters.get("bad"):
                        request.reject("bad was asked for")
                    request.response_parameters["seen"] = f"{request.id}:{request.rows}"
                return {"y": inputs["x"] + self.step}

        class Unused(Model):
            pass
        """.replace("import beside", "import types; beside = types.SimpleNamespace(ONE=1)"),
        parameters={"step": "10"},
    )
    members = (Member(rows=1, id="a"), Member(rows=2, id="b", parameters={"bad": True}), Member(rows=1, id="c"))
    answer: Any = model.execute(Batch({"x": np.arange(4)}, ("y",), members), 0)
    assert isinstance(answer[0], MemberAnswer)
    assert answer[0].outputs["y"].tolist() == [10]
    assert answer[0].parameters == {"seen": "a:1"}
    assert isinstance(answer[1], InvalidInput)
    assert answer[1].message == "model `mine`: bad was asked for"
    assert answer[2].outputs["y"].tolist() == [13]


def test_the_models_own_folder_comes_first_on_its_path(load_model: Any, run_alone: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "colorsys.py").write_text("ANSWER = 42")  # also a module of the standard library
    code = """
        import colorsys
        from farthing import Tensor

        class M:
            inputs = outputs = [Tensor("x", "INT64", [1])]

            def infer(self, inputs):
                return {"x": [colorsys.ANSWER]}
    """
    folder = tmp_path / "mine"
    (folder / "1").mkdir()
    (folder / "1" / "model.py").write_text(__import__("textwrap").dedent(code))
    model = Python().load(ModelSource(name="mine", version=1, path=folder / "1" / "model.py", folder=folder))
    try:
        assert run_alone(model, x=np.array([0]))["x"].tolist() == [42]
    finally:
        model.close()


def test_only_wanted_outputs_travel(load_model: Any) -> None:
    model = load_model(
        """
        from farthing import Tensor

        class M:
            inputs = [Tensor("x", "INT64", [-1])]
            outputs = [Tensor("a", "INT64", [-1]), Tensor("b", "INT64", [-1])]

            def infer(self, inputs):
                return {"a": inputs["x"], "b": object()}
        """
    )
    assert model.batch_axis is None
    answer = model.execute(Batch({"x": np.arange(2)}, ("a",), (Member(rows=2),)), 0)
    assert isinstance(answer, Mapping)
    assert list(answer) == ["a"]


def test_an_arena_grows_from_a_kilobyte_to_a_hundred_megabytes(load_model: Any, run_alone: Any) -> None:
    model = load_model(ECHO.format(datatype="FP32"))
    for size in (1 << 10, 1 << 20, 100 << 20, 1 << 10):
        x = np.full((size // 8, 2), size, np.float32)
        assert np.array_equal(run_alone(model, x=x)["y"], x)


def test_a_model_may_keep_what_it_was_given(load_model: Any, run_alone: Any) -> None:
    model = load_model(
        """
        from farthing import Tensor

        class Last:
            inputs = outputs = [Tensor("x", "FP32", [-1, 2])]
            last = None

            def infer(self, inputs):
                before, self.last = self.last, inputs["x"]
                return {"x": self.last if before is None else before}
        """
    )
    answers = [run_alone(model, x=np.full((1, 2), i, np.float32))["x"][0, 0] for i in range(5)]
    assert answers == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("returned", "found", "expected"),
    [
        ('{"y": inputs["x"][:1]}', "shape [1, 2]", "2 rows"),
        ('{"y": inputs["x"].astype("f8")}', "FP64", "FP32"),
        ('{"y": inputs["x"].T.reshape(4)}', "shape [4]", "[-1, 2]"),
        ('{"z": inputs["x"]}', "nothing", "FP32 [-1, 2]"),
        ('{"y": inputs["x"].astype(complex)}', "dtype complex128", "known: BOOL"),
        ('{"y": {1, 2}}', "holds a set", "bytes, str"),
        ('{"y": [[1], [1, 2]]}', "no array", "list"),
        ("None", "returned a NoneType", "a dict of arrays with y"),
        ('{"y": np.broadcast_to(np.float32(0), (1 << 31, 2))}', "17179869184 bytes", "allowed: 4294967296"),
    ],
)
def test_a_lie_is_called_one_and_the_next_batch_is_served(
    load_model: Any, run_alone: Any, returned: str, found: str, expected: str
) -> None:
    lying = ECHO.format(datatype="FP32").replace(
        '{"y": inputs["x"]}', f'{returned} if inputs["x"][0, 0] else {{"y": inputs["x"]}}'
    )
    model = load_model("    import numpy as np\n" + lying)
    with pytest.raises(EngineFailed) as caught:
        run_alone(model, x=FLOATS)
    assert "model `mine`" in caught.value.message
    assert found in caught.value.message
    assert expected in caught.value.message
    assert run_alone(model, x=0 * FLOATS)["y"].tolist() == [[0, 0], [0, 0]]


def test_an_exception_is_answered_with_its_text_and_line(load_model: Any, run_alone: Any) -> None:
    model = load_model(
        ECHO.format(datatype="FP32").replace("return", "inputs['x'][0, 0] or 1 / 0; return")
        + """
    # nothing
        """
    )
    with pytest.raises(EngineFailed, match=r"model `mine`: ZeroDivisionError: division by zero \(model.py:10\)"):
        run_alone(model, x=0 * FLOATS)
    assert run_alone(model, x=FLOATS)["y"].tolist() == FLOATS.tolist()


def test_a_model_can_say_that_the_input_is_to_blame(load_model: Any, run_alone: Any) -> None:
    model = load_model(
        ECHO.format(datatype="FP32").replace(
            "return", "from farthing.types.errors import InvalidInput; raise InvalidInput('x is odd');"
        )
    )
    with pytest.raises(InvalidInput, match="model `mine`: x is odd"):
        run_alone(model, x=FLOATS)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_this_name", r"model\.py:1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("x = 1\ndef f(:", r"model\.py:2: SyntaxError: "),
        ("import sys\nsys.exit(3)", r"the process exited with status 3 while loading the model"),
        ("import os\nos.kill(os.getpid(), 9)", r"the process was killed by signal 9 \(SIGKILL"),
        ("x = 1", r"no class with a method `infer`, and no `TritonPythonModel`"),
        ("class A:\n  def infer(self): 1\nclass B:\n  def infer(self): 1", r"several classes with `infer`: A, B"),
        ("class A:\n  def infer(self, inputs): 1", r"A declares no inputs"),
        (
            "from farthing import Tensor\nclass A:\n  inputs = [Tensor('x', 'FLOAT', [1])]",
            r"model\.py:3: ValueError: `x`: no datatype is 'FLOAT'; allowed: BOOL, UINT8",
        ),
        (
            "from farthing import Tensor\nclass A:\n  inputs = outputs = [Tensor('x', 'FP32', [1])]\n  batch = True\n"
            "  def infer(self, inputs): 1",
            r"A batches, so every shape begins with -1; `x` is \[1\]",
        ),
    ],
)
def test_what_cannot_be_loaded_says_where_and_why(load_model: Any, code: str, message: str) -> None:
    with pytest.raises(LoadFailed, match=message) as caught:
        load_model(code)
    assert "model.py" in caught.value.message


def test_an_exception_in_load_carries_the_end_of_its_traceback(load_model: Any) -> None:
    code = ECHO.format(datatype="FP32") + "\n        def load(self):\n            raise KeyError('weights')\n"
    with pytest.raises(LoadFailed, match=r"model\.py:13: KeyError: 'weights'") as caught:
        load_model(code)
    assert "Traceback" in caught.value.hint
    assert "raise KeyError('weights')" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameters": {"execution_timeout_seconds": "soon"}}, "`execution_timeout_seconds` is 'soon'; allowed"),
        ({"parameters": {"EXECUTION_ENV_PATH": "/x.tar.gz"}}, "EXECUTION_ENV_PATH, which is not offered"),
        ({"inputs": (TensorSpec(name="z", datatype="FP32", shape=(-1,)),)}, "input `z` is configured, and the model"),
        (
            {"outputs": (TensorSpec(name="y", datatype="FP64", shape=(-1, 2)),)},
            r"`y` is configured as FP64 \[-1, 2\], the model declares FP32 \[-1, 2\]",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(load_model: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadFailed, match=message):
        load_model(ECHO.format(datatype="FP32"), **fields)


def test_what_is_configured_need_not_be_declared(load_model: Any, run_alone: Any) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    model = load_model(
        "class M:\n    def infer(self, inputs):\n        return inputs",
        inputs=(spec,),
        outputs=(spec,),
        batch_rows_max=4,
    )
    assert model.inputs == (spec,)
    assert run_alone(model, x=FLOATS)["x"].tolist() == FLOATS.tolist()


def test_each_instance_is_a_process_of_its_own(load_model: Any, run_alone: Any) -> None:
    model = load_model(
        """
        import os
        from farthing import Tensor

        class M:
            inputs = outputs = [Tensor("x", "INT64", [-1])]

            def infer(self, inputs):
                return {"x": [os.getpid()]}
        """,
        instances=2,
    )
    pids = [run_alone(model, instance, x=np.array([0]))["x"][0] for instance in (0, 1)]
    assert pids == list(model.pids)
    assert len(set(pids)) == 2
