"""The blocks of a model configuration that describe tensors, versions, instances and housekeeping.

Field names are those of Triton's configuration, so that its files and its clients work unchanged. When requests
run together is said in `scheduling`; the whole tree is `config.ModelConfig`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

import msgspec

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
UInt32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
UInt64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""One bit less than Triton's: no count or duration in microseconds needs the last one."""


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the configuration: what is not known is refused, with its path."""


class DataType(StrEnum):
    """Element types by the configuration's names (`TYPE_STRING` is BYTES on the wire)."""

    INVALID = "TYPE_INVALID"
    BOOL = "TYPE_BOOL"
    UINT8 = "TYPE_UINT8"
    UINT16 = "TYPE_UINT16"
    UINT32 = "TYPE_UINT32"
    UINT64 = "TYPE_UINT64"
    INT8 = "TYPE_INT8"
    INT16 = "TYPE_INT16"
    INT32 = "TYPE_INT32"
    INT64 = "TYPE_INT64"
    FP16 = "TYPE_FP16"
    FP32 = "TYPE_FP32"
    FP64 = "TYPE_FP64"
    STRING = "TYPE_STRING"
    BYTES = "TYPE_STRING"
    BF16 = "TYPE_BF16"


WIRE_DATATYPES: Final[Mapping[DataType, str]] = {
    kind: "BYTES" if kind is DataType.STRING else kind.value.removeprefix("TYPE_")
    for kind in DataType
    if kind is not DataType.INVALID
}
"""The configuration's type -> the protocol's datatype (`TYPE_FP32` -> `FP32`)."""

CONFIG_TYPES: Final[Mapping[str, DataType]] = {datatype: kind for kind, datatype in WIRE_DATATYPES.items()}
"""The protocol's datatype -> the configuration's type (`BYTES` -> `TYPE_STRING`)."""


class InputFormat(StrEnum):
    """Where the channels of an image are."""

    NONE = "FORMAT_NONE"
    NHWC = "FORMAT_NHWC"
    NCHW = "FORMAT_NCHW"


class TensorReshape(Block, frozen=True, kw_only=True):
    """The shape the model sees when it differs from the one clients send."""

    shape: tuple[Int64, ...] = ()


class ModelInput(Block, frozen=True, kw_only=True):
    """An input; `dims` leave out the batch dimension when `max_batch_size` is at least 1."""

    name: str = ""
    data_type: DataType = DataType.INVALID
    format: InputFormat = InputFormat.NONE
    dims: tuple[Int64, ...] = ()
    reshape: TensorReshape | None = None
    is_shape_tensor: bool = False
    allow_ragged_batch: bool = False
    optional: bool = False
    is_non_linear_format_io: bool = False


class ModelOutput(Block, frozen=True, kw_only=True):
    """An output; `label_filename` is a file of class names, one a line, in the model's folder."""

    name: str = ""
    data_type: DataType = DataType.INVALID
    dims: tuple[Int64, ...] = ()
    reshape: TensorReshape | None = None
    label_filename: str = ""
    is_shape_tensor: bool = False
    is_non_linear_format_io: bool = False


class BatchInputKind(StrEnum):
    """What an input made by the batcher tells the model about the batch."""

    ELEMENT_COUNT = "BATCH_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT = "BATCH_ACCUMULATED_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT_WITH_ZERO = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
    MAX_ELEMENT_COUNT_AS_SHAPE = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
    ITEM_SHAPE = "BATCH_ITEM_SHAPE"
    ITEM_SHAPE_FLATTEN = "BATCH_ITEM_SHAPE_FLATTEN"


class BatchInput(Block, frozen=True, kw_only=True):
    """An input that the batcher makes from the batch's own inputs."""

    kind: BatchInputKind = BatchInputKind.ELEMENT_COUNT
    target_name: tuple[str, ...] = ()
    data_type: DataType = DataType.INVALID
    source_input: tuple[str, ...] = ()


class BatchOutputKind(StrEnum):
    """How a ragged output is cut up again."""

    SCATTER_WITH_INPUT_SHAPE = "BATCH_SCATTER_WITH_INPUT_SHAPE"


class BatchOutput(Block, frozen=True, kw_only=True):
    """An output whose rows are given back by the shapes of an input."""

    target_name: tuple[str, ...] = ()
    kind: BatchOutputKind = BatchOutputKind.SCATTER_WITH_INPUT_SHAPE
    source_input: tuple[str, ...] = ()


class LatestVersions(Block, frozen=True, kw_only=True):
    """The `num_versions` highest version numbers (0 is read as 1)."""

    num_versions: UInt32 = 1


class AllVersions(Block, frozen=True, kw_only=True):
    """Every version there is."""


class SpecificVersions(Block, frozen=True, kw_only=True):
    """These version numbers, as far as they exist."""

    versions: tuple[Int64, ...] = ()


class VersionPolicy(Block, frozen=True, kw_only=True):
    """Which versions are served; exactly one of the three, none meaning the latest one."""

    latest: LatestVersions | None = None
    all: AllVersions | None = None
    specific: SpecificVersions | None = None


class InstanceKind(StrEnum):
    """The device an instance lives on."""

    AUTO = "KIND_AUTO"
    GPU = "KIND_GPU"
    CPU = "KIND_CPU"
    MODEL = "KIND_MODEL"


class SecondaryDeviceKind(StrEnum):
    """Devices beside the main one."""

    NVDLA = "KIND_NVDLA"


class SecondaryDevice(Block, frozen=True, kw_only=True):
    kind: SecondaryDeviceKind = SecondaryDeviceKind.NVDLA
    device_id: Int64 = 0


class RateLimiterResource(Block, frozen=True, kw_only=True):
    """So many of a named resource are held while an instance runs."""

    name: str = ""
    is_global: bool = msgspec.field(default=False, name="global")
    count: UInt32 = 0


class RateLimiter(Block, frozen=True, kw_only=True):
    resources: tuple[RateLimiterResource, ...] = ()
    priority: UInt32 = 0


class InstanceGroup(Block, frozen=True, kw_only=True):
    """`count` copies of the model on each device; each runs one batch at a time. 0 leaves the count to us."""

    name: str = ""
    kind: InstanceKind = InstanceKind.AUTO
    count: Int32 = 0
    rate_limiter: RateLimiter | None = None
    gpus: tuple[Int32, ...] = ()
    secondary_devices: tuple[SecondaryDevice, ...] = ()
    profile: tuple[str, ...] = ()
    passive: bool = False
    host_policy: str = ""


class ModelParameter(Block, frozen=True, kw_only=True):
    """A value handed to the engine or the model's own code."""

    string_value: str = ""


class WarmupInput(Block, frozen=True, kw_only=True):
    """One tensor of a warm-up request; exactly one source of its bytes."""

    data_type: DataType = DataType.INVALID
    dims: tuple[Int64, ...] = ()
    zero_data: bool | None = None
    random_data: bool | None = None
    input_data_file: str | None = None


class ModelWarmup(Block, frozen=True, kw_only=True):
    """A request run on every instance before the model is ready."""

    name: str = ""
    batch_size: UInt32 = 0
    inputs: Mapping[str, WarmupInput] = {}
    count: UInt32 = 0


class ModelOperations(Block, frozen=True, kw_only=True):
    """Libraries of custom operators."""

    op_library_filename: tuple[str, ...] = ()


class ModelTransactionPolicy(Block, frozen=True, kw_only=True):
    """Whether a request may get other than one answer."""

    decoupled: bool = False


class RepositoryAgent(Block, frozen=True, kw_only=True):
    name: str = ""
    parameters: Mapping[str, str] = {}


class ModelRepositoryAgents(Block, frozen=True, kw_only=True):
    agents: tuple[RepositoryAgent, ...] = ()


class ModelResponseCache(Block, frozen=True, kw_only=True):
    """Whether equal requests may be answered from the response cache."""

    enable: bool = False


class MetricIdentifier(Block, frozen=True, kw_only=True):
    family: str = ""


class HistogramOptions(Block, frozen=True, kw_only=True):
    buckets: tuple[float, ...] = ()


class MetricControl(Block, frozen=True, kw_only=True):
    """How one family of metrics is collected for this model."""

    metric_identifier: MetricIdentifier | None = None
    histogram_options: HistogramOptions | None = None


class ModelMetrics(Block, frozen=True, kw_only=True):
    metric_control: tuple[MetricControl, ...] = ()
