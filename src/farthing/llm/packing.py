"""A model's weights in the layout of the native kernels: packed once, kept in a file, mapped at every later start.

The file is `MAGIC`, the length of a JSON header, the header (what it was made of and where each section lies), then the
sections, each at a multiple of `ALIGNMENT`. It appears by a rename, so there is a whole file or none; whatever is
there that is not ours, not of these weights, not of this layout or damaged is packed anew. Layouts of the sections are
explained in docs/decisions/0007; computing with them belongs to `runners.cpu` and `native/`.
"""

import contextlib
import hashlib
import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing import _native
from farthing.llm.checkpoints.checkpoint import Checkpoint
from farthing.llm.spec import DecoderSpec, RotaryKind
from farthing.types.errors import LoadFailed

WeightsMode = Literal["q8", "q4", "f32"]
MatrixFormat = Literal["q8", "q4", "q4_0", "f32"]
"""`q4_0`: 4 bits without minima, for matrices that the checkpoint has in GGUF's Q4_0; a tenth fewer bytes to read."""


MAGIC: Final = b"FARTHPK1"
LAYOUT: Final = 1
"""Raised when the native layout changes: files of another number are packed anew."""
ALIGNMENT: Final = 4096
TILE: Final = _native.TILE
"""Outputs of a panel; every size is padded to a multiple of it."""
BLOCKS: Final = (192, 256, 128, 160, 224, 96, 64, 32)
"""Inputs of a block, whose weights share a scale for each output, best first: a scale costs time, and little is lost
where weights share one (docs/decisions/0007)."""
PARTS: Final = (64, 96, 32)
"""Activations of a row that may share a scale, best first. Those after a norm have a few channels far larger than the
rest, so it is here that accuracy is lost or kept (docs/decisions/0007)."""
HEAD_PART: Final = 32
WIDE_BLOCK_MAX: Final = 576
"""Inputs a block has at most where activations have 16 bits: the fewer blocks, the fewer products become floats."""
WIDE_ITEMS_MIN: Final = 6
"""Blocks that `down` has at least: threads share out by block what feeds it."""
HEADER_BYTES_MAX: Final = 1 << 24
Q4_KINDS: Final = ("Q4_0", "Q4_1")
"""Stored kinds whose blocks go into q4 sections as they are."""

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told (bytes packed, bytes in all)."""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Where a matrix or vector lies in the file."""

    name: str
    offset: int
    size: int
    checksum: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a packed file says of itself."""

    layout: int
    identity: str
    mode: str
    plan: str
    """Hash of every section's name, shape and format."""
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of a canonical tensor and the outputs they go to."""

    tensor: str
    to: NDArray[np.int32]
    heads: int = 0
    """Inputs come in so many heads, each padded by itself; 0: they do not."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A section of panels."""

    name: str
    format: MatrixFormat
    outputs: int
    inputs: int
    block: int
    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        return _native.matrix_bytes(self.format, self.outputs, self.inputs, self.block)


@dataclass(frozen=True, slots=True)
class Vector:
    """A section of floats: pieces of canonical vectors, each at its places, zeros elsewhere."""

    name: str
    length: int
    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        return self.length * 4


@dataclass(frozen=True, slots=True)
class Rows:
    """The embedding: rows of f16 or f32, read one at a time."""

    name: str
    tensor: str
    rows: int
    columns: int
    is_f32: bool

    @property
    def size(self) -> int:
        return self.rows * self.columns * (4 if self.is_f32 else 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """The mapped file, for as long as anyone holds this."""

    data: NDArray[np.uint8]
    offsets: dict[str, int]
    plan: "Plan"
    path: Path | None
    """None: no folder would take it, and it lives in memory."""
    _map: mmap.mmap = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every section of a model in a mode, in file order."""

    mode: WeightsMode
    head_mode: WeightsMode
    width_block: int
    attention_block: int
    ffn_block: int
    width_part: int
    attention_part: int
    ffn_part: int
    head_part: int
    sections: tuple[Matrix | Vector | Rows, ...]

    @property
    def formats(self) -> dict[str, MatrixFormat]:
        """Of every matrix."""
        return {one.name: one.format for one in self.sections if isinstance(one, Matrix)}

    @property
    def embedding_is_f32(self) -> bool:
        return any(isinstance(one, Rows) and one.is_f32 for one in self.sections)

    @property
    def hash(self) -> str:
        digest = hashlib.sha256()
        for one in self.sections:
            shape = (one.outputs, one.inputs, one.block, one.format) if isinstance(one, Matrix) else one.size
            digest.update(repr((type(one).__name__, one.name, shape)).encode())
        return digest.hexdigest()[:32]


def padded(size: int) -> int:
    """Up to a multiple of the tile."""
    return -(-size // TILE) * TILE


def block_of(inputs: int) -> int:
    """Inputs that share a scale in a matrix with so many (a multiple of the tile)."""
    return next(block for block in BLOCKS if inputs % block == 0)


def wide_block_of(inputs: int, blocks_min: int = 1) -> int:
    """The same where activations have 16 bits: the largest, if possible of whole 64s (a step of AMX)."""
    sizes = range(TILE, min(WIDE_BLOCK_MAX, max(TILE, inputs // blocks_min)) + 1, TILE)
    return max((size for size in sizes if inputs % size == 0), key=lambda size: (size % 64 == 0, size))


def part_of(block: int) -> int:
    """Activations that share a scale where so many weights do."""
    return next(part for part in PARTS if block % part == 0)


def plan_of(spec: DecoderSpec, mode: WeightsMode, *, is_wide: bool = False) -> Plan:
    """What is packed for a decoder. The head stays at 8 bits in the 4-bit mode: it decides between near words.

    `is_wide`: activations of 8-bit layers have 16 bits, and need no scale of their own for less than a block.
    """
    head_mode: WeightsMode = "q8" if mode == "q4" else mode
    width, size, ffn = padded(spec.width), padded(spec.head_size), padded(spec.ffn_width)
    attention = size * spec.heads
    if mode == "q8" and is_wide:
        blocks = [wide_block_of(width), wide_block_of(attention), wide_block_of(ffn, WIDE_ITEMS_MIN)]
        parts = blocks
    else:
        blocks = [TILE if mode == "f32" else block_of(inputs) for inputs in (width, attention, ffn)]
        parts = [part_of(block) for block in blocks]
    sections: list[Matrix | Vector | Rows] = [Rows("embedding", "embedding", spec.vocabulary, width, mode == "f32")]
    vector = _vector_maker(width)
    sections.append(vector("output_norm", "output_norm"))
    for layer in range(spec.layers):
        sections.extend(_layer(spec, f"layers.{layer}.", mode, attention, ffn, blocks))
    head = Source("embedding" if spec.ties_head else "head", _range(spec.vocabulary))
    sections.append(Matrix("head", head_mode, padded(spec.vocabulary), width, blocks[0], (head,)))
    return Plan(
        mode=mode,
        head_mode=head_mode,
        width_block=blocks[0],
        attention_block=blocks[1],
        ffn_block=blocks[2],
        width_part=parts[0],
        attention_part=parts[1],
        ffn_part=parts[2],
        head_part=blocks[0] if is_wide else HEAD_PART,
        sections=tuple(sections),
    )


def plan_for(checkpoint: Checkpoint, mode: WeightsMode) -> Plan:
    """`plan_of` a checkpoint for this processor, without minima where no block has one."""
    plan = plan_of(checkpoint.spec, mode, is_wide=_native.has_wide_rows())
    if mode != "q4":
        return plan

    def settled(one: Matrix | Vector | Rows) -> Matrix | Vector | Rows:
        if not isinstance(one, Matrix) or one.format != "q4":
            return one
        stored = (checkpoint.stored(source.tensor) for source in one.sources)
        has_none = all(tensor.kind == "Q4_0" and tensor.shape[1] == one.inputs for tensor in stored)
        return replace(one, format="q4_0") if has_none else one

    return replace(plan, sections=tuple(settled(one) for one in plan.sections))


def _layer(
    spec: DecoderSpec, p: str, mode: WeightsMode, attention: int, ffn: int, blocks: Sequence[int]
) -> Iterator[Matrix | Vector]:
    width, size = padded(spec.width), padded(spec.head_size)
    vector = _vector_maker(width)
    turned = _turned(spec)
    plain = np.arange(spec.head_size)
    # Keys and values of a head side by side, then the query heads: the order in which the pass computes them.
    k = [_head_rows(2 * g, size, turned) for g in range(spec.kv_heads)]
    v = [_head_rows(2 * g + 1, size, plain) for g in range(spec.kv_heads)]
    q = [_head_rows(2 * spec.kv_heads + h, size, turned) for h in range(spec.heads)]
    fused = {"q": np.concatenate(q), "k": np.concatenate(k), "v": np.concatenate(v)}
    outputs = size * (spec.heads + 2 * spec.kv_heads)
    yield vector(p + "attention_norm", p + "attention_norm")
    if spec.has_qk_norm:
        for name in ("q_norm", "k_norm"):
            yield Vector(p + name, size, (Source(p + name, _head_rows(0, size, turned)),))
    yield Matrix(p + "qkv", mode, outputs, width, blocks[0], tuple(Source(p + n, to) for n, to in fused.items()))
    if spec.has_qkv_bias:
        yield Vector(p + "qkv_bias", outputs, tuple(Source(f"{p}{n}_bias", to) for n, to in fused.items()))
    yield Matrix(p + "o", mode, width, attention, blocks[1], (Source(p + "o", _range(spec.width), spec.heads),))
    if spec.has_post_norms:
        yield vector(p + "attention_post_norm", p + "attention_post_norm")
    yield vector(p + "ffn_norm", p + "ffn_norm")
    # 16 gates, then the 16 ups they are multiplied with: a panel.
    index = np.arange(spec.ffn_width)
    gate = (index // 16 * TILE + index % 16).astype(np.int32)
    both = (Source(p + "gate", gate), Source(p + "up", gate + np.int32(16)))
    yield Matrix(p + "gate_up", mode, 2 * ffn, width, blocks[0], both)
    yield Matrix(p + "down", mode, width, ffn, blocks[2], (Source(p + "down", _range(spec.width)),))
    if spec.has_post_norms:
        yield vector(p + "ffn_post_norm", p + "ffn_post_norm")


def _vector_maker(width: int) -> Callable[[str, str], Vector]:
    def make(name: str, tensor: str) -> Vector:
        return Vector(name, width, (Source(tensor, _range(width)),))

    return make


def _range(count: int) -> NDArray[np.int32]:
    return np.arange(count, dtype=np.int32)


def _turned(spec: DecoderSpec) -> NDArray[np.int64]:
    """Where each dimension of q and k goes in its head so that pairs that turn together are halves; q.k is the same."""
    places = np.arange(spec.head_size)
    if spec.rotary_kind is RotaryKind.INTERLEAVED:
        pairs = {len(rotary.frequencies) for rotary in spec.rotaries}
        if len(pairs) > 1:
            raise LoadFailed("rotaries of different sizes cannot both turn neighbouring dimensions")
        half = pairs.pop()
        places[: 2 * half] = places[: 2 * half] // 2 + places[: 2 * half] % 2 * half
    return places


def _head_rows(index: int, size: int, places: NDArray[np.int64]) -> NDArray[np.int32]:
    return (index * size + places).astype(np.int32)


# -- the file ---------------------------------------------------------------------------------------------------------


def packed_weights(
    checkpoint: Checkpoint,
    mode: WeightsMode,
    *,
    threads: int,
    cache_folder: Path | None = None,
    progress: Progress | None = None,
) -> PackedWeights:
    """The weights of a checkpoint, mapped: from the file beside it, or packed now into one.

    Folders are tried in this order: `cache_folder` if given; the checkpoint's own; the user's cache. Where none can be
    written, the weights are packed into memory.
    """
    plan = plan_for(checkpoint, mode)
    folders = list(_folders(checkpoint.path, cache_folder))
    stem = checkpoint.path.name if checkpoint.path.is_dir() else checkpoint.path.stem
    name = packed_name(stem, mode)
    for folder in folders:
        path = folder / name
        if path.exists():
            found = open_packed(path, checkpoint.identity, plan, threads=threads)
            if found is not None:
                return found
    total = _file_size(plan, checkpoint.identity)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _pack_into(folder, name, checkpoint, plan, total, threads, progress)
        except OSError as error:
            log.info("packed weights cannot be kept in %s: %s", folder, error)
    log.warning("no folder can keep packed weights; %d MB are packed into memory at every start", total >> 20)
    memory = mmap.mmap(-1, total)
    sections = _pack(memory, checkpoint, plan, threads, progress)
    return _packed(memory, sections, plan, None)


def packed_name(stem: str, mode: WeightsMode) -> str:
    """Of a model's packed file. Processors whose plans differ have files of their own."""
    return f"{stem}.{mode}{'-wide' if mode == 'q8' and _native.has_wide_rows() else ''}.farthing-packed"


class _UnusableError(Exception):
    """Why a packed file is packed anew."""


def open_packed(path: Path, identity: str, plan: Plan, *, threads: int) -> PackedWeights | None:
    """The file, mapped and checked, or None with a line in the log that says why not."""
    try:
        memory, header = _mapped(path, identity, plan)
        data = np.frombuffer(memory, np.uint8)
        for section in header.sections:
            if _native.checksum(data[section.offset : section.offset + section.size], threads) != section.checksum:
                raise _UnusableError(f"`{section.name}` is damaged")
    except (OSError, ValueError, msgspec.DecodeError, _UnusableError) as error:
        log.warning("%s is not used, the weights are packed anew: %s", path, error)
        return None
    return _packed(memory, header.sections, plan, path)


def _mapped(path: Path, identity: str, plan: Plan) -> tuple[mmap.mmap, Header]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(MAGIC)) != MAGIC:
            raise _UnusableError("not a file of packed weights")
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= HEADER_BYTES_MAX:
            raise _UnusableError("its header is damaged")
        header = msgspec.json.decode(file.read(length), type=Header)
        if (header.layout, header.mode, header.plan) != (LAYOUT, plan.mode, plan.hash):
            raise _UnusableError("it is of another layout")
        if header.identity != identity:
            raise _UnusableError("it was made of other weights")
        places = _places(plan, len(MAGIC) + 8 + length)
        if [(one.name, one.offset, one.size) for one in header.sections] != places or size != _end(places):
            raise _UnusableError(f"it is cut short or longer than it says ({size} bytes)")
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), header


def _folders(path: Path, cache_folder: Path | None) -> Iterator[Path]:
    if cache_folder is not None:
        yield cache_folder
    yield path if path.is_dir() else path.parent
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with contextlib.suppress(RuntimeError):  # nobody's home
        key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
        yield Path(base).expanduser() / "farthing" / "packed" / key


def _packed(memory: mmap.mmap, sections: Iterable[Section], plan: Plan, path: Path | None) -> PackedWeights:
    data = np.frombuffer(memory, np.uint8)
    return PackedWeights(data=data, offsets={s.name: s.offset for s in sections}, plan=plan, path=path, _map=memory)


def _places(plan: Plan, begin: int) -> list[tuple[str, int, int]]:
    places = []
    at = _aligned(begin)
    for one in plan.sections:
        places.append((one.name, at, one.size))
        at = _aligned(at + one.size)
    return places


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _end(places: Sequence[tuple[str, int, int]]) -> int:
    _, offset, size = places[-1]
    return _aligned(offset + size)


def _header(plan: Plan, identity: str, sections: Sequence[Section]) -> bytes:
    header = Header(layout=LAYOUT, identity=identity, mode=plan.mode, plan=plan.hash, sections=tuple(sections))
    raw = msgspec.json.encode(header)
    return MAGIC + len(raw).to_bytes(8, "little") + raw


def _begin(plan: Plan, identity: str) -> int:
    """Room for the header, whatever the checksums and offsets are."""
    widest = [Section(name=one.name, offset=2**50, size=one.size, checksum=2**64 - 1) for one in plan.sections]
    return _aligned(len(_header(plan, identity, widest)))


def _file_size(plan: Plan, identity: str) -> int:
    return _end(_places(plan, _begin(plan, identity)))


def _pack_into(
    folder: Path, name: str, checkpoint: Checkpoint, plan: Plan, total: int, threads: int, progress: Progress | None
) -> PackedWeights:
    descriptor, staging = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(descriptor, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, total)  # a full disk says so now, not as a signal in mid-write
            memory = mmap.mmap(file.fileno(), total)
            sections = _pack(memory, checkpoint, plan, threads, progress)
            memory.flush()
        Path(staging).chmod(0o644)  # mkstemp's own is for its maker alone
        Path(staging).replace(folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(staging).unlink()
        raise
    return _packed(memory, sections, plan, folder / name)


def _pack(
    memory: mmap.mmap, checkpoint: Checkpoint, plan: Plan, threads: int, progress: Progress | None
) -> tuple[Section, ...]:
    begin = _begin(plan, checkpoint.identity)
    places = _places(plan, begin)
    data = np.frombuffer(memory, np.uint8)
    sections = []
    for one, (name, offset, size) in zip(plan.sections, places, strict=True):
        out = data[offset : offset + size]
        _fill(out, one, checkpoint, threads)
        sections.append(Section(name=name, offset=offset, size=size, checksum=_native.checksum(out, threads)))
        if progress is not None:
            progress(offset + size, len(data))
    header = _header(plan, checkpoint.identity, sections)
    # The header says its own length, and it may have come out shorter than the room for it: pad with spaces.
    raw = header[len(MAGIC) + 8 :].ljust(begin - len(MAGIC) - 8)
    data[:begin] = np.frombuffer(MAGIC + len(raw).to_bytes(8, "little") + raw, np.uint8)
    return tuple(sections)


def _fill(out: NDArray[np.uint8], one: Matrix | Vector | Rows, checkpoint: Checkpoint, threads: int) -> None:
    if isinstance(one, Matrix):
        _native.pack_nothing(one.format, out, one.outputs, one.inputs, one.block)
        for source in one.sources:
            _fill_rows(out, one, source, checkpoint, threads)
    elif isinstance(one, Vector):
        floats = out.view(np.float32)
        floats[:] = 0
        for source in one.sources:
            values = checkpoint.tensor(source.tensor)
            floats[source.to[: len(values)]] = values
    else:
        rows = out.view(np.float32 if one.is_f32 else np.float16).reshape(one.rows, one.columns)
        values = checkpoint.tensor(one.tensor)
        rows[:, : values.shape[1]] = values
        rows[:, values.shape[1] :] = 0


def _fill_rows(out: NDArray[np.uint8], one: Matrix, source: Source, checkpoint: Checkpoint, threads: int) -> None:
    if one.format in ("q4", "q4_0"):
        stored = checkpoint.stored(source.tensor)
        if stored.kind in Q4_KINDS and stored.shape[1] == one.inputs:
            raw = np.frombuffer(stored.data, np.uint8)
            _native.pack_q4_blocks(one.format, stored.kind, raw, source.to, out, one.outputs, one.inputs, threads)
            return
    rows = np.ascontiguousarray(checkpoint.tensor(source.tensor), np.float32)
    if source.heads:
        rows = _padded_heads(rows, source.heads)
    _native.pack_rows(one.format, rows, source.to, out, one.outputs, one.inputs, one.block, threads)


def _padded_heads(rows: NDArray[Any], heads: int) -> NDArray[np.float32]:
    size = rows.shape[1] // heads
    if size == padded(size):
        return rows
    wide = np.zeros((len(rows), heads, padded(size)), np.float32)
    wide[:, :, :size] = rows.reshape(len(rows), heads, size)
    return wide.reshape(len(rows), -1)
