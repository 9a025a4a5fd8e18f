"""From a checkpoint on disk to a language model that can be served: weights, tokenizer, template, memory, generator.

Blocks, so it runs on a loader thread. What the operator set stands; the rest is the model's own, or what the machine
has room for, and is said in the log once it is settled.
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, Final, Literal

import msgspec
import numpy as np

from farthing import __version__
from farthing.config.model import complete_config
from farthing.config.server import KV_CONTEXTS_MAX, KvPrecision, LanguageSettings, WeightsPrecision
from farthing.engines.cores import cores_available
from farthing.llm.chat_template import ChatTemplate
from farthing.llm.checkpoints.checkpoint import Checkpoint, GenerationDefaults
from farthing.llm.checkpoints.opening import open_checkpoint
from farthing.llm.generator import Generator
from farthing.llm.grammar import GrammarCompiler
from farthing.llm.runners.runner import BLOCK_TOKENS, Runner, Step, StepSequence
from farthing.llm.spec import DecoderSpec, tensor_shapes
from farthing.protocols.openai import SamplingDefaults
from farthing.repository import FoundModel, FoundVersion
from farthing.runtime.huge_pages import huge_page_bytes
from farthing.runtime.language_model import BACKEND, LoadedLanguageModel, spec_of
from farthing.runtime.memory import Promises, free_bytes
from farthing.types.errors import FarthingError, LoadFailed

HEAD_ELEMENTS: Final = 32
"""Heads are padded to whole tiles of so many elements."""
FREE_SHARE: Final = 0.5
"""Of free memory for the KV pool, when nobody says: the other half is for everybody else."""
MOVE_AFTER_S: Final = 1.0
"""From a model's load until its weights are moved into huge pages: its first clients come first."""
KV_BLOCKS_MIN: Final = 4
KV_BLOCKS_MAX: Final = 1 << 20

log = logging.getLogger(__name__)


def load_language_model(
    found: FoundModel, version: FoundVersion, settings: LanguageSettings, *, queue_max: int, memory: Promises
) -> LoadedLanguageModel:
    """Opens, packs and starts one. Raises `LoadFailed` naming the file and the reason.

    The KV memory is taken from `memory`, and given back when the model is closed.
    """
    started = time.monotonic()
    settings = _with_parameters(settings, found)
    checkpoint = open_checkpoint(version.path)
    decoder = checkpoint.spec
    block_bytes = _kv_token_bytes(decoder, settings) * BLOCK_TOKENS
    kv_bytes = memory.take(lambda free: _kv_blocks(decoder, settings, found.name, free) * block_bytes)
    with ExitStack() as undo:
        undo.callback(memory.give, kv_bytes)
        # Weights are mapped and tried out in native code while the vocabulary is read in Python.
        helper = undo.enter_context(ThreadPoolExecutor(1, thread_name_prefix="load"))
        opening = helper.submit(_opened, checkpoint, settings, kv_bytes // block_bytes, found.name)
        undo.callback(_close_opened, opening)
        tokenizer = checkpoint.tokenizer()
        source = checkpoint.chat_template()
        template = ChatTemplate(source, tokenizer) if source else None
        if template is not None:
            with suppress(FarthingError):  # some templates want more than a word from a user
                template.encode([{"role": "user", "content": "hello"}])
        runner = opening.result()
        helper.shutdown()
        generator = Generator(runner, tokenizer, queue_max=queue_max, identity=checkpoint.identity, name=found.name)
        undo.pop_all()  # all went well
    _move_weights(runner)

    def close(timeout_s: float) -> bool:
        is_closed = generator.close(timeout_s)
        if is_closed:
            memory.give(kv_bytes)
        return is_closed

    context = min(generator.tokens_max, settings.context_tokens or decoder.context_tokens)
    description = _describe(decoder, settings, runner, context)
    log.info("model %s version %d: %s", found.name, version.number, description)
    spec = spec_of(found.name, version.number, found.namespace)
    return LoadedLanguageModel(
        spec=spec,
        config=complete_config(found.config, spec, backend=BACKEND, default_model_filename=version.path.name),
        tokenizer=tokenizer,
        template=template,
        generator=generator,
        grammars=GrammarCompiler(tokenizer, decoder.vocabulary),
        vocabulary=decoder.vocabulary,
        token_characters_max=tokenizer.token_characters_max,
        context_tokens=context,
        defaults=_defaults(checkpoint.generation_defaults),
        fingerprint=_fingerprint(checkpoint.identity, settings),
        description=description,
        load_s=time.monotonic() - started,
        close=close,
    )


def open_runner(checkpoint: Checkpoint, settings: LanguageSettings, blocks: int) -> Runner:
    """The forward pass on this machine's CPU; the plain one where the native core was not built."""
    try:
        from farthing.llm.runners.cpu import CpuRunner
    except ImportError as missing:
        from farthing.llm.runners.reference import ReferenceRunner

        log.warning("the native core is missing (%s); generating with the plain reference, which is slow", missing)
        return ReferenceRunner(checkpoint, blocks=blocks)
    threads = settings.threads or cores_available()
    return CpuRunner(checkpoint, weights=_mode(settings), kv=_kv(settings), kv_blocks=blocks, threads=threads)


def _opened(checkpoint: Checkpoint, settings: LanguageSettings, blocks: int, name: str) -> Runner:
    """A runner that has computed one token, so that its first client does not wait for pages of weights.

    Raises `LoadFailed` for a model that answers with no numbers.
    """
    runner = open_runner(checkpoint, settings, blocks)
    try:
        _try_out(runner, name)
    except BaseException:
        runner.close()
        raise
    return runner


def _close_opened(opening: "Future[Runner]") -> None:
    """The runner, should there be one: somebody else's failure ended the load."""
    if opening.exception() is None:
        opening.result().close()


def _move_weights(runner: Runner) -> None:
    """Weights into huge pages, where the system has them and memory is ample (for a while a part is there twice)."""
    try:
        from farthing.llm.runners.cpu import CpuRunner
    except ImportError:
        return
    if isinstance(runner, CpuRunner) and huge_page_bytes() and free_bytes() > 2 * len(runner.packed.data):
        runner.move_weights(MOVE_AFTER_S)


def _try_out(runner: Runner, name: str) -> None:
    first = np.zeros(1, np.int32)
    logits = runner.run(Step(tokens=first, sequences=(StepSequence(1, 0, first),), logits_rows=first))
    if not np.isfinite(logits).all():
        raise LoadFailed(f"model `{name}`: a first token gives logits that are no numbers; is the file damaged?")


def _mode(settings: LanguageSettings) -> Literal["q8", "q4", "f32"]:
    if settings.weights is WeightsPrecision.Q4:
        return "q4"
    return "f32" if settings.weights is WeightsPrecision.F32 else "q8"


def _kv(settings: LanguageSettings) -> Literal["int8", "bf16", "f32"]:
    if settings.kv is KvPrecision.AUTO:
        return "f32" if settings.weights is WeightsPrecision.F32 else "int8"
    if settings.kv is KvPrecision.BF16:
        return "bf16"
    return "f32" if settings.kv is KvPrecision.F32 else "int8"


def _with_parameters(settings: LanguageSettings, found: FoundModel) -> LanguageSettings:
    """The server's settings with those of the model's own configuration in their place."""
    own = {
        key: value.string_value
        for key, value in found.config.parameters.items()
        if key in LanguageSettings.__struct_fields__
    }
    if not own:
        return settings
    try:
        return msgspec.convert({**msgspec.to_builtins(settings), **own}, LanguageSettings, strict=False)
    except msgspec.ValidationError as wrong:
        raise LoadFailed(f"model `{found.name}`: parameters: {wrong}") from None


def _kv_blocks(decoder: DecoderSpec, settings: LanguageSettings, name: str, free: int) -> int:
    """How many KV blocks there is room for. Raises `LoadFailed` if that is next to none."""
    block_bytes = _kv_token_bytes(decoder, settings) * BLOCK_TOKENS
    context = settings.context_tokens or decoder.context_tokens
    said = settings.kv_memory_bytes
    room = said or int((free - _weight_bytes(decoder, settings)) * FREE_SHARE)
    blocks = room // block_bytes
    if not said:
        blocks = min(blocks, KV_CONTEXTS_MAX * -(-context // BLOCK_TOKENS))
    if blocks < KV_BLOCKS_MIN:
        raise LoadFailed(
            f"model `{name}`: {room / 1e6:.0f} MB for keys and values is too little; a block of {BLOCK_TOKENS} tokens "
            f"takes {block_bytes / 1e6:.1f} MB",
            hint="raise --llm-kv-memory, or free memory",
        )
    return min(blocks, KV_BLOCKS_MAX)


def _kv_token_bytes(decoder: DecoderSpec, settings: LanguageSettings) -> int:
    """Of keys and values of one token, in all layers."""
    elements = -(-decoder.head_size // HEAD_ELEMENTS) * HEAD_ELEMENTS
    head_bytes = {"int8": elements + 4, "bf16": 2 * elements, "f32": 4 * elements}[_kv(settings)]
    return decoder.layers * 2 * decoder.kv_heads * head_bytes


def _weight_bytes(decoder: DecoderSpec, settings: LanguageSettings) -> int:
    bytes_each = {WeightsPrecision.F32: 4.0, WeightsPrecision.Q4: 0.7}.get(settings.weights, 1.2)
    return int(_parameters(decoder) * bytes_each)


def _parameters(decoder: DecoderSpec) -> int:
    total = 0
    for shape in tensor_shapes(decoder).values():
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def _describe(decoder: DecoderSpec, settings: LanguageSettings, runner: Runner, context: int) -> str:
    pool = runner.blocks * runner.block_tokens
    kv_bytes = pool * _kv_token_bytes(decoder, settings)
    return (
        f"{decoder.architecture}, {_parameters(decoder) / 1e6:,.0f} M parameters in {_mode(settings)}, "
        f"context {context:,} tokens, KV memory {kv_bytes / 1e9:.2f} GB for {pool:,} tokens in {_kv(settings)}, "
        f"{settings.threads or cores_available()} threads of {getattr(runner, 'isa', 'plain Python')}"
    )


def _defaults(advised: GenerationDefaults) -> SamplingDefaults:
    said: Mapping[str, Any] = {
        key: value for key, value in msgspec.structs.asdict(advised).items() if value is not None
    }
    return SamplingDefaults(**said)


def _fingerprint(identity: str, settings: LanguageSettings) -> str:
    text = "\0".join((identity, _mode(settings), _kv(settings), __version__))
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
