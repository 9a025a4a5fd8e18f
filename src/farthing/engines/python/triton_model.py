"""Drives a `TritonPythonModel`: Triton's configuration and arguments in, requests and responses through.

`execute` is given one request per member of the batch, whose tensors are views of the batch, and answers each.
"""

import inspect
import json
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, Final

from farthing.engines.python import coroutines, triton
from farthing.engines.python.interface import MemberResult, ModelMistake, as_tensor, rows_of, short_text
from farthing.engines.python.messages import Ready, Run, Start
from farthing.engines.python.triton_sender import LoneRequest, Sent, collect
from farthing.types.tensors import DATATYPES, NUMPY_DTYPES, Tensor, TensorSpec

CLASS_NAME: Final = "TritonPythonModel"

ERROR_KINDS: Final = {
    triton.TritonError.NOT_FOUND: "NotFound",
    triton.TritonError.INVALID_ARG: "InvalidInput",
    triton.TritonError.UNAVAILABLE: "Unavailable",
    triton.TritonError.UNSUPPORTED: "Unsupported",
    triton.TritonError.ALREADY_EXISTS: "AlreadyExists",
    triton.TritonError.CANCELLED: "Cancelled",
}


class TritonModel:
    """An instance of a user's `TritonPythonModel`, initialised."""

    def __init__(self, model_class: type[Any], start: Start) -> None:
        config = _completed(model_class, _configuration(start))
        self.ready = _ready(config, start.outputs)
        sequences = config.get("sequence_batching") or {}
        states = {state["output_name"] for state in sequences.get("state") or ()}
        self._answer_names = {entry["name"] for entry in config["output"]} - states
        self.is_iterative = bool(sequences.get("iterative_sequence"))
        """Its requests may run again."""
        self.name = self._name = start.name
        self.version = self._version = start.version
        self.instance = self._model = model_class()
        if not callable(getattr(self._model, "execute", None)):
            raise ModelMistake(f"{CLASS_NAME} has no method `execute`")
        if callable(initialize := getattr(self._model, "initialize", None)):
            # Triton hands everything over as text.
            initialize(
                {
                    "model_config": json.dumps(config),
                    "model_instance_kind": "CPU",
                    "model_instance_name": f"{start.name}_0_{start.instance}",
                    "model_instance_device_id": "0",
                    "model_repository": start.folder,
                    "model_version": str(start.version),
                    "model_name": start.name,
                }
            )

    def run(self, inputs: dict[str, Tensor], run: Run) -> Sequence[MemberResult]:
        own_rows = rows_of(inputs, [member.rows for member in run.members])
        sent: SimpleQueue[Sent] = SimpleQueue()
        requests = [
            LoneRequest(
                place,
                sent,
                request_id=member.id,
                correlation_id=_correlation_id(member.parameters.get("sequence_id", 0)),
                requested_output_names=run.outputs,
                model_name=self._name,
                model_version=self._version,
                inputs=[triton.Tensor(name, tensor) for name, tensor in own.items()],
                flags=_sequence_flags(member.parameters),
                parameters=member.parameters,
            )
            for place, (member, own) in enumerate(zip(run.members, own_rows, strict=True))
        ]
        responses = self._model.execute(requests)
        if inspect.isawaitable(responses):
            responses = coroutines.run(responses)
        if responses is None and any(request.has_sender or request.is_rescheduled for request in requests):
            responses = [None] * len(requests)
        if not isinstance(responses, Sequence) or len(responses) != len(requests):
            found = len(responses) if isinstance(responses, Sequence) else f"a {type(responses).__name__}"
            raise ModelMistake(f"execute returned {found} responses; expected one a request, {len(requests)}")
        again = [request.is_rescheduled for request in requests]
        places = [p for p, r in enumerate(requests) if r.has_sender and responses[p] is None and not again[p]]
        del requests  # who holds a sender from here on is the model
        answers = {**dict(enumerate(responses)), **collect(places, sent)} if places else dict(enumerate(responses))
        return [
            self._rescheduled(response, run) if again[place] else self._result(response, run)
            for place, response in answers.items()
        ]

    def _rescheduled(self, response: object, run: Run) -> MemberResult:
        """Of a request that runs again: None, or nothing but states."""
        if response is None:
            return MemberResult(is_rescheduled=True)
        result = self._result(response, run)
        if self._answer_names.isdisjoint(result.outputs):
            result.is_rescheduled = not result.error_kind
            return result
        return MemberResult(
            error_kind="EngineFailed",
            error="expected a None object in the execute function return list for a rescheduled request, or a response "
            f"with states only; found {', '.join(result.outputs)}",
        )

    def _result(self, response: object, run: Run) -> MemberResult:
        if not isinstance(response, triton.InferenceResponse):
            return MemberResult(
                error_kind="EngineFailed",
                error=f"execute returned a {type(response).__name__}; expected a pb_utils.InferenceResponse",
            )
        if (error := response.error()) is not None:
            return MemberResult(
                error_kind=ERROR_KINDS.get(error.code(), "EngineFailed"), error=short_text(error.message())
            )
        tensors = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        try:
            outputs = {name: as_tensor(name, tensors[name]) for name in run.outputs if name in tensors}
        except ModelMistake as mistake:
            return MemberResult(error_kind="EngineFailed", error=str(mistake))
        return MemberResult(outputs, response.parameter_values)

    def close(self) -> None:
        if callable(finalize := getattr(self._model, "finalize", None)):
            finalize()


def _correlation_id(value: object) -> int | str:
    return value if isinstance(value, int | str) else 0


def _sequence_flags(parameters: Any) -> int:
    start = triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START if parameters.get("sequence_start") else 0
    end = triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END if parameters.get("sequence_end") else 0
    return start | end


def _configuration(start: Start) -> dict[str, Any]:
    """The model's configuration with what Triton would always have filled in."""
    config: dict[str, Any] = _without_nulls(json.loads(start.config))
    config["name"] = start.name
    config["backend"] = config.get("backend") or "python"
    config["max_batch_size"] = start.batch_rows_max or 0
    skip = 1 if config["max_batch_size"] > 0 else 0
    for kind, specs in (("input", start.inputs), ("output", start.outputs)):
        if not config.get(kind):
            config[kind] = [
                {"name": s.name, "data_type": _config_type(s.datatype), "dims": list(s.shape[skip:])} for s in specs
            ]
    return config


def _without_nulls(value: Any) -> Any:
    """What was not said is not there: as Triton writes it, and as `in` and `get` in a model's code expect."""
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return [_without_nulls(entry) for entry in value] if isinstance(value, list) else value


def _completed(model_class: type[Any], config: dict[str, Any]) -> dict[str, Any]:
    complete = getattr(model_class, "auto_complete_config", None)
    if not callable(complete):
        return config
    answer = complete(triton.ModelConfig(json.dumps(config)))
    if not isinstance(answer, triton.ModelConfig):
        raise ModelMistake(f"auto_complete_config returned a {type(answer).__name__}; expected the ModelConfig")
    return answer.as_dict()


def _ready(config: dict[str, Any], wanted: Sequence[TensorSpec]) -> Ready:
    rows_max = config["max_batch_size"]
    for kind in ("input", "output"):
        if not config.get(kind):
            raise ModelMistake(f"neither the configuration nor auto_complete_config names an {kind}")
    outputs = [_spec(entry, rows_max) for entry in config["output"]]
    named = {spec.name for spec in outputs}
    return Ready(
        inputs=tuple(_spec(entry, rows_max) for entry in config["input"]),
        # States of sequences are no outputs of the configuration; what is wanted has them.
        outputs=(*outputs, *(spec for spec in wanted if spec.name not in named)),
        batch_axis=rows_max > 0,
        batch_rows_max=rows_max,
        is_decoupled=triton.using_decoupled_model_transaction_policy(config),
    )


def _spec(entry: dict[str, Any], rows_max: int) -> TensorSpec:
    datatype = str(entry["data_type"]).removeprefix("TYPE_").replace("STRING", "BYTES")
    if datatype not in NUMPY_DTYPES:
        raise ModelMistake(f"`{entry['name']}`: no data_type is {entry['data_type']}")
    dims = tuple(int(d) for d in entry["dims"])
    return TensorSpec(
        name=entry["name"],
        datatype=datatype,
        shape=(-1, *dims) if rows_max > 0 else dims,
        is_optional=bool(entry.get("optional", False)),
    )


def _config_type(datatype: str) -> str:
    assert datatype in DATATYPES.values()
    return f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"
