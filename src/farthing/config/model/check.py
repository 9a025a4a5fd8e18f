"""Does a configuration make sense? What can be refused before the model file is opened.

Pure: given the configuration and the name of its folder, nothing else. Whether it fits the model file is seen by
the engine that loads it; whether an ensemble's models exist, by whoever has them all.
"""

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from farthing.config.model.check_sequences import repeated, sequence_faults
from farthing.config.model.config import ModelConfig
from farthing.config.model.fields import DataType, InstanceKind, ModelInput, ModelOutput
from farthing.config.model.scheduling import TimeoutAction
from farthing.types.errors import LoadFailed

PRIORITY_LEVELS_MAX = 1024
"""Each level is a queue of its own; nobody has a use for more, and a mistyped number must not cost memory."""


def check_model_config(config: ModelConfig, folder_name: str) -> None:
    """Returns if the configuration can be loaded under that name, else raises `LoadFailed` with the first fault."""
    for fault in _faults(config, folder_name):
        raise LoadFailed(f"model `{folder_name}`: {fault}")


def _faults(config: ModelConfig, folder_name: str) -> Iterator[str]:
    if config.name and config.name != folder_name:
        yield f"the configuration calls it `{config.name}`; take `name` out, or give both one name"
    if config.max_batch_size is not None and config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}; allowed: 0 (never batch) or more"
    yield from _version_faults(config)
    yield from _tensor_faults(config)
    yield from _scheduler_faults(config)
    yield from _ensemble_faults(config)
    yield from _instance_faults(config)
    yield from _warmup_faults(config)


def _version_faults(config: ModelConfig) -> Iterator[str]:
    policy = config.version_policy
    chosen = [name for name in ("latest", "all", "specific") if getattr(policy, name) is not None]
    if len(chosen) > 1:
        yield f"version_policy has {' and '.join(chosen)}; allowed: one of them"
    if policy.specific and not policy.specific.versions:
        yield "version_policy.specific names no versions"
    if policy.specific and any(number < 1 for number in policy.specific.versions):
        yield f"version_policy.specific.versions has {min(policy.specific.versions)}; versions start at 1"


def _tensor_faults(config: ModelConfig) -> Iterator[str]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if any(not tensor.name for tensor in tensors):
            yield f"an {kind} has no name"
        if twice := repeated(tensor.name for tensor in tensors):
            yield f"{kind} `{twice}` is listed twice"
        for tensor in tensors:
            for fault in _one_tensor(tensor, batches=bool(config.max_batch_size)):
                yield f"{kind} `{tensor.name}`: {fault}"
    for tensor in config.output:
        if "/" in tensor.label_filename or "\\" in tensor.label_filename:
            yield f"output `{tensor.name}`: label_filename `{tensor.label_filename}` is not a plain file name"


def _one_tensor(tensor: ModelInput | ModelOutput, *, batches: bool) -> Iterator[str]:
    if tensor.data_type is DataType.INVALID:
        yield "no data_type"
    if not tensor.dims and tensor.reshape is None:
        yield "dims is empty; give its shape without the batch dimension, or a reshape for a single value"
    if any(dim < 1 and dim != -1 for dim in tensor.dims):
        yield f"dims has {min(tensor.dims)}; allowed: 1 or more, or -1 for any size"
    if tensor.reshape is not None:
        yield from _reshape_faults(tensor.dims, tensor.reshape.shape)
    if isinstance(tensor, ModelInput) and tensor.allow_ragged_batch and not batches:
        yield "allow_ragged_batch needs a max_batch_size of at least 1"


def _reshape_faults(dims: Sequence[int], shape: Sequence[int]) -> Iterator[str]:
    """A reshape must hold as many elements; between two -1 so must the fixed parts on each side."""
    if any(dim < 1 and dim != -1 for dim in shape):
        yield f"reshape has {min(shape)}; allowed: 1 or more, or -1 for any size"
    elif _fixed_parts(dims) != _fixed_parts(shape):
        yield f"dims {list(dims)} cannot be reshaped to {list(shape)}: the numbers of elements differ"


def _fixed_parts(shape: Sequence[int]) -> list[int]:
    """Elements before, between and after the dimensions of any size: [2, 3, -1, 4] -> [6, 4]."""
    parts = [1]
    for dim in shape:
        if dim == -1:
            parts.append(1)
        else:
            parts[-1] *= dim
    return parts


def _scheduler_faults(config: ModelConfig) -> Iterator[str]:
    chosen = [
        name
        for name in ("dynamic_batching", "sequence_batching", "ensemble_scheduling")
        if getattr(config, name) is not None
    ]
    if len(chosen) > 1:
        yield f"{' and '.join(chosen)} are both given; allowed: one of them"
    sizes_max = config.max_batch_size
    dynamic = config.dynamic_batching
    oldest = config.sequence_batching.oldest if config.sequence_batching else None
    if dynamic is not None and sizes_max == 0:
        yield "dynamic_batching needs a max_batch_size of at least 1, found 0"
    for name, sizes in (
        ("dynamic_batching", dynamic.preferred_batch_size if dynamic else ()),
        ("sequence_batching.oldest", oldest.preferred_batch_size if oldest else ()),
    ):
        if any(size < 1 for size in sizes):
            yield f"{name}.preferred_batch_size has {min(sizes)}; allowed: 1 or more"
        if sizes_max and any(size > sizes_max for size in sizes):
            yield f"{name}.preferred_batch_size has {max(sizes)}, more than max_batch_size {sizes_max}"
    if dynamic is not None:
        yield from _priority_faults(config)
    if config.sequence_batching is not None:
        yield from sequence_faults(config)


def _priority_faults(config: ModelConfig) -> Iterator[str]:
    assert config.dynamic_batching is not None
    dynamic = config.dynamic_batching
    levels = dynamic.priority_levels
    if levels > PRIORITY_LEVELS_MAX:
        yield f"dynamic_batching.priority_levels is {levels}; allowed: up to {PRIORITY_LEVELS_MAX}"
    if levels and not 1 <= dynamic.default_priority_level <= levels:
        yield f"dynamic_batching.default_priority_level is {dynamic.default_priority_level}; allowed: 1 to {levels}"
    if not levels and dynamic.default_priority_level:
        yield "dynamic_batching.default_priority_level is given without priority_levels"
    if outside := [level for level in dynamic.priority_queue_policy if not 1 <= level <= levels]:
        yield f"dynamic_batching.priority_queue_policy has level {outside[0]}; priority_levels is {levels}"
    if dynamic.preserve_ordering:
        # An answer that waits for one that waits on purpose; Triton refuses the same two.
        if levels > 1:
            yield f"dynamic_batching.preserve_ordering goes with one priority level; priority_levels is {levels}"
        policies = [dynamic.default_queue_policy, *dynamic.priority_queue_policy.values()]
        if any(policy is not None and policy.timeout_action is TimeoutAction.DELAY for policy in policies):
            yield "dynamic_batching.preserve_ordering does not go with timeout_action DELAY; allowed: REJECT"


def _ensemble_faults(config: ModelConfig) -> Iterator[str]:
    if config.ensemble_scheduling is None:
        if config.platform == "ensemble":
            yield "platform is ensemble, but there is no ensemble_scheduling"
        return
    steps = config.ensemble_scheduling.step
    if not steps:
        yield "ensemble_scheduling has no step"
    if config.instance_group:
        yield "an ensemble has no instance_group of its own; its steps' models have"
    makers: dict[str, int | None] = {tensor.name: None for tensor in config.input}
    for place, step in enumerate(steps):
        where = f"ensemble_scheduling.step[{place}]"
        if not step.model_name:
            yield f"{where} has no model_name"
        if not step.input_map or not step.output_map:
            yield f"{where} needs an input_map and an output_map"
        for tensor in step.output_map.values():
            if tensor in makers:
                yield f"{where} makes `{tensor}`, which exists already"
            makers[tensor] = place
    for place, step in enumerate(steps):
        for tensor in step.input_map.values():
            if tensor not in makers:
                yield f"ensemble_scheduling.step[{place}] reads `{tensor}`, which is no input and no step makes"
    for output in config.output:
        if output.name not in makers:
            yield f"output `{output.name}` is made by no step"
    needs = {
        place: {maker for tensor in step.input_map.values() if (maker := makers.get(tensor)) is not None}
        for place, step in enumerate(steps)
    }
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        yield f"ensemble steps wait for each other: {' -> '.join(map(str, error.args[1]))}"


def _instance_faults(config: ModelConfig) -> Iterator[str]:
    for place, group in enumerate(config.instance_group):
        where = f"instance_group[{place}]"
        if group.count < 0:
            yield f"{where}.count is {group.count}; allowed: 1 or more"
        if group.kind in {InstanceKind.CPU, InstanceKind.MODEL} and group.gpus:
            yield f"{where} lists gpus, but its kind is {group.kind}"
        if any(gpu < 0 for gpu in group.gpus):
            yield f"{where}.gpus has {min(group.gpus)}; device numbers start at 0"
        for resource in group.rate_limiter.resources if group.rate_limiter else ():
            if not resource.name:
                yield f"{where}: a rate limiter resource has no name"
            if resource.count == 0:
                yield f"{where}: rate limiter resource `{resource.name}` has count 0"
    if twice := repeated(group.name for group in config.instance_group if group.name):
        yield f"instance_group `{twice}` is listed twice"


def _warmup_faults(config: ModelConfig) -> Iterator[str]:
    for warmup in config.model_warmup:
        for name, tensor in warmup.inputs.items():
            sources = [tensor.zero_data, tensor.random_data, tensor.input_data_file]
            if sum(source is not None for source in sources) != 1:
                yield (
                    f"model_warmup `{warmup.name}`: input `{name}` needs one of zero_data, random_data, input_data_file"
                )
