"""What the configuration says against what the file says, and what is refused before anything is served."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models import (
    fails_when_run,
    fixed_batch,
    identity,
    save,
    sum_of_rows,
    tiny_mlp,
    two_inputs_add_sub,
)

from farthing.config.model import ModelConfig, parse_model_config
from farthing.engines.contract import Batch, Member
from farthing.repository import FoundModel, Repository
from farthing.runtime.load import AUTO_ROWS_MAX, INSTANCES_MAX, LoadedVersion, load_version
from farthing.types.errors import LoadFailed


def found(folder: Path, data: bytes, config: dict[str, Any] | None = None) -> FoundModel:
    save(folder, data)
    parsed: ModelConfig | None = parse_model_config(config) if config is not None else None
    return Repository([folder.parent]).find(folder.name, config=parsed)


def load(folder: Path, data: bytes, **config: Any) -> LoadedVersion:
    model = found(folder, data, config)
    return load_version(model, model.versions[-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "net"


def tensor(name: str, dims: list[int], data_type: str = "TYPE_FP32", **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": data_type, "dims": dims, **more}


MLP_TENSORS = {"input": [tensor("x", [32])], "output": [tensor("y", [8])]}


# -- nothing configured ----------------------------------------------------------------------------------------------


def test_without_a_configuration_everything_is_read_from_the_file(folder: Path) -> None:
    loaded = load(folder, tiny_mlp())
    assert [(t.name, t.datatype, t.shape) for t in loaded.spec.inputs] == [("x", "FP32", (-1, 32))]
    assert loaded.spec.batch_rows_max == loaded.limits.rows_max == AUTO_ROWS_MAX
    assert loaded.limits.delay_ns_max is None
    assert loaded.spec.platform == "onnxruntime_onnx"
    assert loaded.instances == 1
    assert loaded.times.estimate_ns(1) > 0
    assert loaded.config.max_batch_size == AUTO_ROWS_MAX
    assert loaded.config.backend == "onnxruntime"
    assert loaded.config.dynamic_batching is not None
    assert loaded.load_s > 0


def test_a_model_that_mixes_rows_is_served_without_batches(folder: Path) -> None:
    loaded = load(folder, sum_of_rows())
    assert loaded.spec.batch_rows_max == 0
    assert loaded.spec.inputs[0].shape == (-1, 4)
    assert loaded.config.dynamic_batching is None


def test_a_model_with_a_fixed_first_dimension_is_served_as_it_is(folder: Path) -> None:
    assert load(folder, fixed_batch(2)).spec.inputs[0].shape == (2, 4)


def test_a_model_that_cannot_be_tried_is_believed_about_its_batch_dimension(folder: Path) -> None:
    assert load(folder, fails_when_run()).spec.batch_rows_max == AUTO_ROWS_MAX


# -- max_batch_size --------------------------------------------------------------------------------------------------


def test_max_batch_size_is_taken_at_its_word(folder: Path) -> None:
    loaded = load(folder, tiny_mlp(), max_batch_size=4)
    assert loaded.spec.batch_rows_max == loaded.limits.rows_max == 4


def test_max_batch_size_zero_means_never(folder: Path) -> None:
    loaded = load(folder, tiny_mlp(), max_batch_size=0)
    assert loaded.spec.batch_rows_max == 0
    assert loaded.spec.inputs[0].shape == (-1, 32)


def test_listed_tensors_without_a_max_batch_size_mean_never_as_they_do_to_triton(folder: Path) -> None:
    listed = {"input": [tensor("x", [-1, 32])], "output": [tensor("y", [-1, 8])]}
    assert load(folder, tiny_mlp(), **listed).spec.batch_rows_max == 0


def test_a_max_batch_size_for_a_model_that_cannot_batch_is_refused(folder: Path) -> None:
    with pytest.raises(LoadFailed, match=r"input `x` has shape \[2, 4\] in the model file, so rows cannot be added"):
        load(folder, fixed_batch(2), max_batch_size=4)


def test_the_batch_dimension_is_put_in_front_of_configured_dims(folder: Path) -> None:
    loaded = load(folder, tiny_mlp(), max_batch_size=4, **MLP_TENSORS)
    assert loaded.spec.inputs[0].shape == (-1, 32)
    assert loaded.spec.outputs[0].shape == (-1, 8)


# -- tensors against the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"input": [tensor("x", [33])]}, r"`x` is configured as FP32 \[-1, 33\], the model file says FP32 \[-1, 32\]"),
        (
            {"input": [tensor("x", [32], "TYPE_INT8")]},
            r"`x` is configured as INT8 \[-1, 32\], the model file says FP32",
        ),
        ({"input": [tensor("x", [2, 16])]}, "is configured as"),
        ({"input": [tensor("z", [32])]}, "the configuration has input `z`, the model file has: x"),
        ({"output": [tensor("z", [8])]}, "no output to serve; the file has: `y`"),
        ({"output": [tensor("y", [9])]}, r"output `y` is configured as FP32 \[-1, 9\]"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(folder: Path, config: Any, told: str) -> None:
    with pytest.raises(LoadFailed, match=told):
        load(folder, tiny_mlp(), max_batch_size=4, **config)


def test_a_configuration_that_leaves_out_an_input_is_refused(folder: Path) -> None:
    one = [tensor("INPUT0", [16], "TYPE_INT32")]
    with pytest.raises(LoadFailed, match="leaves out input INPUT1"):
        load(folder, two_inputs_add_sub(), max_batch_size=4, input=one)


def test_a_configuration_may_leave_out_an_output(folder: Path) -> None:
    loaded = load(folder, two_inputs_add_sub(), max_batch_size=4, output=[tensor("OUTPUT1", [16], "TYPE_INT32")])
    assert [output.name for output in loaded.spec.outputs] == ["OUTPUT1"]


def test_a_configuration_may_be_narrower_than_the_file(folder: Path) -> None:
    loaded = load(
        folder, identity("FP32", ["n", None]), max_batch_size=4, input=[tensor("x", [3])], output=[tensor("y", [3])]
    )
    assert loaded.spec.inputs[0].shape == (-1, 3)


def test_a_reshape_is_what_the_model_sees_and_dims_what_clients_see(folder: Path) -> None:
    loaded = load(
        folder,
        tiny_mlp(),
        max_batch_size=4,
        input=[tensor("x", [4, 8], reshape={"shape": [32]})],
        output=[tensor("y", [2, 4], reshape={"shape": [8]})],
    )
    assert loaded.spec.inputs[0].shape == (-1, 4, 8)
    assert loaded.reshapes_in == {"x": (-1, 32)}
    assert loaded.reshapes_out == {"y": (-1, 8)}


# -- instances and batching ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "instances"),
    [([], 1), ([{"count": 3}], 3), ([{"count": 2}, {"count": 1, "kind": "KIND_CPU"}], 3), ([{}], 1)],
)
def test_instances_of_all_groups_add_up(folder: Path, groups: list[dict[str, Any]], instances: int) -> None:
    assert load(folder, tiny_mlp(), instance_group=groups).instances == instances


def test_several_instances_run_at_once_and_share_the_cores(folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    loaded = load(folder, tiny_mlp(), instance_group=[{"count": 2}])
    x = np.ones((1, 32), np.float32)
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(lambda n: loaded.executable.execute(Batch({"x": x}, ("y",), (Member(1),)), n % 2), range(200))
        )
    assert all((answer["y"] == answers[0]["y"]).all() for answer in answers)  # type: ignore[call-overload]


@pytest.mark.parametrize("group", [{"kind": "KIND_GPU"}, {"gpus": [0]}])
def test_an_instance_on_a_gpu_is_refused_here(folder: Path, group: dict[str, Any]) -> None:
    with pytest.raises(LoadFailed, match="asks for instances on a GPU, and this build of farthing runs on the CPU"):
        load(folder, tiny_mlp(), instance_group=[group])


def test_more_instances_than_anybody_has_cores_are_refused(folder: Path) -> None:
    with pytest.raises(LoadFailed, match=f"asks for 2000000000 instances; allowed: up to {INSTANCES_MAX}"):
        load(folder, tiny_mlp(), instance_group=[{"count": 2_000_000_000}])


def test_a_configured_delay_and_preferred_sizes_reach_the_batcher(folder: Path) -> None:
    dynamic = {"preferred_batch_size": [8, 4], "max_queue_delay_microseconds": 100}
    limits = load(folder, tiny_mlp(), max_batch_size=8, dynamic_batching=dynamic).limits
    assert limits.preferred_rows == (4, 8)
    assert limits.delay_ns_max == 100_000


def test_an_empty_dynamic_batching_block_means_measure(folder: Path) -> None:
    assert load(folder, tiny_mlp(), max_batch_size=8, dynamic_batching={}).limits.delay_ns_max is None


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_transaction_policy": {"decoupled": True}}, "asks for model_transaction_policy.decoupled"),
        ({"platform": "nothing_known"}, "no engine is called `nothing_known`"),
        ({"backend": "openvino"}, "net"),
    ],
)
def test_what_is_not_served_is_refused_and_not_served_wrongly(folder: Path, config: Any, told: str) -> None:
    with pytest.raises(LoadFailed, match=told):
        load(folder, sum_of_rows(), max_batch_size=4, **config)


def test_the_engine_is_closed_when_the_configuration_does_not_fit(folder: Path) -> None:
    from unittest import mock

    from farthing.engines.onnxruntime import OnnxExecutable

    with mock.patch.object(OnnxExecutable, "close", autospec=True) as close:
        with pytest.raises(LoadFailed):
            load(folder, tiny_mlp(), max_batch_size=4, input=[tensor("x", [33])])
        close.assert_called_once()


# -- warm-up ---------------------------------------------------------------------------------------------------------


def warm(**sample: Any) -> dict[str, Any]:
    return {"name": "sample", "batch_size": 2, **sample}


def told(**source: Any) -> dict[str, Any]:
    return {"data_type": "TYPE_FP32", "dims": [32], **source}


def runs_of_warm_up(folder: Path, data: bytes, *samples: dict[str, Any], **config: Any) -> list[tuple[int, Any]]:
    """Instance and inputs of each run, in order."""
    from unittest import mock

    from farthing.engines.onnxruntime import OnnxExecutable

    seen: list[tuple[int, Any]] = []
    execute = OnnxExecutable.execute

    def remember(self: Any, batch: Batch, instance: int) -> Any:
        seen.append((instance, dict(batch.inputs)))
        return execute(self, batch, instance)

    with (
        mock.patch.object(OnnxExecutable, "execute", remember),
        mock.patch("farthing.runtime.load.measure"),
    ):
        load(folder, data, max_batch_size=4, model_warmup=list(samples), **config)
    return seen


def test_each_sample_runs_count_times_on_each_instance(folder: Path) -> None:
    seen = runs_of_warm_up(
        folder,
        tiny_mlp(),
        warm(count=3, inputs={"x": told(zero_data=True)}),
        warm(batch_size=1, inputs={"x": told(random_data=True)}),
        instance_group=[{"count": 2}],
    )
    assert [instance for instance, _ in seen] == [0, 0, 0, 1, 1, 1, 0, 1]
    assert seen[0][1]["x"].shape == (2, 32)
    assert not seen[0][1]["x"].any()
    assert seen[-1][1]["x"].shape == (1, 32)
    assert seen[-1][1]["x"].std() > 0


@pytest.mark.parametrize("rows_in_file", [1, 2])
def test_a_sample_may_come_from_a_file_whole_or_one_row(folder: Path, rows_in_file: int) -> None:
    (folder / "warmup").mkdir(parents=True)
    rows = np.arange(32 * rows_in_file, dtype=np.float32).reshape(rows_in_file, 32)
    (folder / "warmup" / "data").write_bytes(rows.tobytes())
    [(_, inputs)] = runs_of_warm_up(folder, tiny_mlp(), warm(inputs={"x": told(input_data_file="data")}))
    assert (inputs["x"] == rows).all()
    assert inputs["x"].shape == (2, 32)


def test_texts_for_a_warm_up_lie_in_a_file_as_on_the_wire(folder: Path) -> None:
    (folder / "warmup").mkdir(parents=True)
    (folder / "warmup" / "texts").write_bytes(b"\x02\0\0\0ab" + b"\x00\0\0\0" + b"\x01\0\0\0c" + b"\x01\0\0\0d")
    sample = warm(inputs={"x": {"data_type": "TYPE_STRING", "dims": [2], "input_data_file": "texts"}})
    [(_, inputs)] = runs_of_warm_up(folder, identity("BYTES"), sample)
    assert inputs["x"].tolist() == [[b"ab", b""], [b"c", b"d"]]


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (warm(inputs={}), "`sample`: inputs missing: x"),
        (warm(inputs={"x": told(zero_data=True), "z": told(zero_data=True)}), "the model has no input `z`; it has: x"),
        (
            warm(inputs={"x": told(zero_data=True, dims=[31])}),
            r"input `x` has dims \[31\]; the model expects \[-1, 32\]",
        ),
        (warm(inputs={"x": told(zero_data=True, data_type="TYPE_INT8")}), "is TYPE_INT8; the model expects FP32"),
        (warm(batch_size=5, inputs={"x": told(zero_data=True)}), "batch_size is 5; allowed: up to 4"),
        (warm(count=1001, inputs={"x": told(zero_data=True)}), "count is 1001; allowed: up to 1000"),
        (warm(inputs={"x": told(input_data_file="none")}), "none: No such file"),
        (warm(inputs={"x": told(input_data_file="../1/model.onnx")}), "leads out of"),
        (warm(inputs={"x": told(input_data_file="odd")}), "3 bytes are not a number of FP32 elements"),
        (warm(inputs={"x": told(input_data_file="short")}), r"holds 1 elements; a tensor of \[2, 32\] has 64"),
    ],
)
def test_a_warm_up_that_does_not_fit_is_told(folder: Path, sample: dict[str, Any], reason: str) -> None:
    (folder / "warmup").mkdir(parents=True)
    (folder / "warmup" / "odd").write_bytes(b"abc")
    (folder / "warmup" / "short").write_bytes(b"abcd")
    with pytest.raises(LoadFailed, match=reason):
        load(folder, tiny_mlp(), max_batch_size=4, model_warmup=[sample])


def test_a_warm_up_that_fails_keeps_the_model_from_being_ready(folder: Path) -> None:
    sample = warm(inputs={"x": {"data_type": "TYPE_FP32", "dims": [5], "zero_data": True}})
    with pytest.raises(LoadFailed, match="model `net`: model_warmup `sample`"):
        load(folder, fails_when_run(), max_batch_size=4, model_warmup=[sample])


def test_a_warm_up_file_that_ends_inside_a_text_is_told(folder: Path) -> None:
    (folder / "warmup").mkdir(parents=True)
    (folder / "warmup" / "texts").write_bytes(b"\x09\0\0\0ab")
    sample = warm(inputs={"x": {"data_type": "TYPE_STRING", "dims": [2], "input_data_file": "texts"}})
    with pytest.raises(LoadFailed, match="texts: ends inside element 0"):
        load(folder, identity("BYTES"), max_batch_size=4, model_warmup=[sample])


def test_a_reshaped_input_is_warmed_up_in_the_model_s_shape(folder: Path) -> None:
    sample = warm(inputs={"x": told(zero_data=True, dims=[4, 8])})
    reshaped = {"input": [tensor("x", [4, 8], reshape={"shape": [32]})]}
    [(_, inputs)] = runs_of_warm_up(folder, tiny_mlp(), sample, **reshaped)
    assert inputs["x"].shape == (2, 32)
