"""The blocks of a model configuration that say when and where a request runs.

Dynamic batching, sequences, ensembles and the optimization hints, in Triton's field names. What they mean at run
time belongs to `batching` and `engines`.
"""

from collections.abc import Mapping
from enum import StrEnum

from farthing.config.model.fields import Block, DataType, Int32, Int64, UInt32, UInt64


class TimeoutAction(StrEnum):
    """What happens to a request that waited too long."""

    REJECT = "REJECT"
    DELAY = "DELAY"


class QueuePolicy(Block, frozen=True, kw_only=True):
    """How long and how many requests of one priority level may wait; 0 is no limit of the model's own."""

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout_microseconds: UInt64 = 0
    allow_timeout_override: bool = False
    max_queue_size: UInt32 = 0


class DynamicBatching(Block, frozen=True, kw_only=True):
    """Which batch sizes are worth waiting for, and how long; nothing set leaves it to measurement."""

    preferred_batch_size: tuple[Int32, ...] = ()
    max_queue_delay_microseconds: UInt64 = 0
    preserve_ordering: bool = False
    priority_levels: UInt64 = 0
    default_priority_level: UInt64 = 0
    default_queue_policy: QueuePolicy | None = None
    priority_queue_policy: Mapping[UInt64, QueuePolicy] = {}


class ControlKind(StrEnum):
    """What a control input tells the model about a sequence."""

    START = "CONTROL_SEQUENCE_START"
    READY = "CONTROL_SEQUENCE_READY"
    END = "CONTROL_SEQUENCE_END"
    CORRID = "CONTROL_SEQUENCE_CORRID"


class SequenceControl(Block, frozen=True, kw_only=True):
    """One signal and the values that mean false and true."""

    kind: ControlKind = ControlKind.START
    int32_false_true: tuple[Int32, ...] = ()
    fp32_false_true: tuple[float, ...] = ()
    bool_false_true: tuple[bool, ...] = ()
    data_type: DataType = DataType.INVALID


class SequenceControlInput(Block, frozen=True, kw_only=True):
    name: str = ""
    control: tuple[SequenceControl, ...] = ()


class SequenceInitialState(Block, frozen=True, kw_only=True):
    """What a state holds at the start of a sequence: zeros or a file."""

    data_type: DataType = DataType.INVALID
    dims: tuple[Int64, ...] = ()
    zero_data: bool | None = None
    data_file: str | None = None
    name: str = ""


class SequenceState(Block, frozen=True, kw_only=True):
    """An output of one step that is an input of the next."""

    input_name: str = ""
    output_name: str = ""
    data_type: DataType = DataType.INVALID
    dims: tuple[Int64, ...] = ()
    initial_state: tuple[SequenceInitialState, ...] = ()
    use_same_buffer_for_input_output: bool = False
    use_growable_memory: bool = False


class SequenceDirect(Block, frozen=True, kw_only=True):
    """Each sequence keeps its own slot of the batch."""

    max_queue_delay_microseconds: UInt64 = 0
    minimum_slot_utilization: float = 0.0


class SequenceOldest(Block, frozen=True, kw_only=True):
    """The oldest sequences' steps are batched dynamically."""

    max_candidate_sequences: Int32 = 0
    preferred_batch_size: tuple[Int32, ...] = ()
    max_queue_delay_microseconds: UInt64 = 0
    preserve_ordering: bool = False


class SequenceBatching(Block, frozen=True, kw_only=True):
    """How series of requests that share state are run."""

    direct: SequenceDirect | None = None
    oldest: SequenceOldest | None = None
    max_sequence_idle_microseconds: UInt64 = 0
    control_input: tuple[SequenceControlInput, ...] = ()
    state: tuple[SequenceState, ...] = ()
    iterative_sequence: bool = False


class EnsembleStep(Block, frozen=True, kw_only=True):
    """One model of a pipeline; the maps go from its tensor names to the ensemble's."""

    model_name: str = ""
    model_version: Int64 = -1
    input_map: Mapping[str, str] = {}
    output_map: Mapping[str, str] = {}
    model_namespace: str = ""


class EnsembleScheduling(Block, frozen=True, kw_only=True):
    """A pipeline of models."""

    step: tuple[EnsembleStep, ...] = ()
    max_inflight_requests: UInt32 = 0


class ModelPriority(StrEnum):
    """How a model's runs are placed before other models'."""

    DEFAULT = "PRIORITY_DEFAULT"
    MAX = "PRIORITY_MAX"
    MIN = "PRIORITY_MIN"


class OptimizationGraph(Block, frozen=True, kw_only=True):
    level: Int32 = 0


class GraphShape(Block, frozen=True, kw_only=True):
    dim: tuple[Int64, ...] = ()


class GraphLowerBound(Block, frozen=True, kw_only=True):
    batch_size: Int32 = 0
    input: Mapping[str, GraphShape] = {}


class GraphSpec(Block, frozen=True, kw_only=True):
    """A batch size and shapes for which a CUDA graph is recorded."""

    batch_size: Int32 = 0
    input: Mapping[str, GraphShape] = {}
    graph_lower_bound: GraphLowerBound | None = None


class OptimizationCuda(Block, frozen=True, kw_only=True):
    graphs: bool = False
    busy_wait_events: bool = False
    graph_spec: tuple[GraphSpec, ...] = ()
    output_copy_stream: bool = False


class Accelerator(Block, frozen=True, kw_only=True):
    """A named accelerator of the runtime, with its settings."""

    name: str = ""
    parameters: Mapping[str, str] = {}


class ExecutionAccelerators(Block, frozen=True, kw_only=True):
    gpu_execution_accelerator: tuple[Accelerator, ...] = ()
    cpu_execution_accelerator: tuple[Accelerator, ...] = ()


class PinnedMemoryBuffer(Block, frozen=True, kw_only=True):
    enable: bool = False


class Optimization(Block, frozen=True, kw_only=True):
    """Hints to the runtime."""

    graph: OptimizationGraph | None = None
    priority: ModelPriority = ModelPriority.DEFAULT
    cuda: OptimizationCuda | None = None
    execution_accelerators: ExecutionAccelerators | None = None
    input_pinned_memory: PinnedMemoryBuffer | None = None
    output_pinned_memory: PinnedMemoryBuffer | None = None
    gather_kernel_buffer_threshold: UInt32 = 0
    eager_batching: bool = False
