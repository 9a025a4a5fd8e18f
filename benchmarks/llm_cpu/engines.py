"""The engines that are compared: how each is installed, what it is given of a model, and how it is started.

An engine is data. Those with an OpenAI server are asked over HTTP, those without in a worker of their own
interpreter (`inside/`), which flatters them: no socket, no JSON, no text.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import vllm_on_cpu
import weights
from weights import CACHE, LARGE, NAMES, TINY

HERE: Final = Path(__file__).parent
INSIDE: Final = HERE / "inside"
PINS: Final = HERE / "pins"

LLAMA_PACKAGE: Final = "llama-cpp-python==0.3.36"
LLAMA: Final = CACHE / "llama.cpp"
LLAMA_SOURCE: Final = CACHE / "src" / "llama_cpp_python-0.3.36" / "vendor" / "llama.cpp"
_HAS_AMX: Final = " amx_tile" in Path("/proc/cpuinfo").read_text()
LLAMA_FLAGS: Final = (
    "-DGGML_NATIVE=ON",
    # GCC 12 believes `ldtilecfg` to read 8 bytes, leaves out the rest of its operand, and the server ends there.
    *(["-DCMAKE_CXX_FLAGS=-fno-tree-dse -fno-dse"] if _HAS_AMX else []),
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
LLAMA_TARGETS: Final = ("llama-server", "llama-quantize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command that serves one model until it is told to stop."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine in one precision."""

    name: str
    about: str
    install: Callable[[], None]
    prepare: Callable[[str], Path]
    """model -> what it serves, made if need be."""
    streamed: Callable[[str], int]
    """model -> bytes of weights that one decoded token needs."""
    launch: Callable[[Path, int], Launch]
    version: Callable[[], str]
    is_http: bool = True
    ready_path: str = "/health"
    models: tuple[str, ...] = NAMES
    is_ours: bool = False
    is_default: bool = True
    start_max_s: float = 300
    """The first start of Farthing packs the weights; of the others none takes long."""


def python(environment: str) -> str:
    """The interpreter of an environment in the cache."""
    return str(CACHE / environment / "bin" / "python")


def install(environment: str) -> None:
    """Installs `pins/ENVIRONMENT.txt` in an environment of its own; a second call costs nothing."""
    home, wanted = CACHE / environment, (PINS / f"{environment}.txt").read_text()
    stamp = home / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {environment} into {home}", file=sys.stderr, flush=True)
    weights.command(sys.executable, "-m", "venv", "--clear", home)
    pip = [python(environment), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    weights.command(*pip, "--requirement", PINS / f"{environment}.txt")
    stamp.write_text(wanted)


def version_of(environment: str, package: str) -> Callable[[], str]:
    """The package's version as its environment sees it."""

    def version() -> str:
        interpreter = python(environment) if environment else sys.executable
        code = f"from importlib.metadata import version; print(version({package!r}))"
        done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return version


# -- Farthing ---------------------------------------------------------------------------------------------------------


def _served(model: str, mode: str) -> Path:
    """What Farthing is given: in 4 bits of L the file that llama.cpp reads, for nobody has trained that one."""
    return _quantised(model, "Q4_0") if model == LARGE and mode == "q4" else weights.prepare(model)


def _packed(model: str, mode: str) -> Path:
    """The same, with its packed weights there: what is measured is every start but the first."""
    from farthing.llm.checkpoints.opening import open_checkpoint
    from farthing.llm.packing import packed_weights

    path = _served(model, mode)
    packed_weights(open_checkpoint(path), mode, threads=2)  # type: ignore[arg-type]
    return path


def _packed_bytes(model: str, mode: str) -> int:
    """Matrices and norms; the embedding's rows are read one at a time."""
    from farthing.llm.checkpoints.opening import open_checkpoint
    from farthing.llm.packing import Rows, plan_for

    plan = plan_for(open_checkpoint(_served(model, mode)), mode)  # type: ignore[arg-type]
    return sum(one.size for one in plan.sections if not isinstance(one, Rows))


BYTECODE: Final = {"PYTHONDONTWRITEBYTECODE": ""}
"""An installed package has its bytecode beside it; a checkout has it only where nobody forbids Python to write it."""


def _compile_bytecode() -> None:
    """As pip does when it installs."""
    weights.command(sys.executable, "-m", "compileall", "-q", HERE.parents[1] / "src" / "farthing")


def _farthing(mode: str, *, guesses: bool) -> Engine:
    run = ["-c", "from farthing.cli.main import main; main()"] if guesses else [str(INSIDE / "farthing_undrafted.py")]

    def launch(path: Path, port: int) -> Launch:
        where = ["--http", f"127.0.0.1:{port}", "--no-grpc"]
        command = [sys.executable, *run, "serve", str(path), *where, "--llm-weights", mode]
        return Launch(command=command, environment=BYTECODE)

    how = "prompt lookup as it decides" if guesses else "prompt lookup off"
    return Engine(
        name=f"farthing-{mode}" + ("-lookup" if guesses else ""),
        about=f"this checkout, `farthing serve`, nothing else configured; {how}",
        install=_compile_bytecode,
        prepare=lambda model: _packed(model, mode),
        streamed=lambda model: _packed_bytes(model, mode),
        launch=launch,
        version=version_of("", "farthing"),
        ready_path="/v2/health/ready",
        is_ours=True,
        is_default=not guesses or mode == "q8",
    )


# -- llama.cpp --------------------------------------------------------------------------------------------------------


def _build_llama() -> None:
    server = LLAMA / "bin" / "llama-server"
    if server.exists():
        return
    print(f"building llama.cpp in {LLAMA}: ten minutes or more", file=sys.stderr, flush=True)
    archive = CACHE / "src" / f"{LLAMA_SOURCE.parents[1].name}.tar.gz"
    if not LLAMA_SOURCE.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        weights.command(*pip, LLAMA_PACKAGE, "--dest", CACHE / "src")
        weights.command("tar", "-xzf", archive, "-C", CACHE / "src")
    release = ("-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF")
    weights.command("cmake", "-S", LLAMA_SOURCE, "-B", LLAMA, *release, *LLAMA_FLAGS)
    weights.command("cmake", "--build", LLAMA, "--parallel", "2", "--target", *LLAMA_TARGETS)


def _full_gguf(model: str) -> Path:
    """Before llama.cpp quantises: S as shipped, L in bfloat16 by llama.cpp's own converter."""
    if model == TINY:
        return weights.prepare(model)
    install("convert")
    script = LLAMA_SOURCE / "convert_hf_to_gguf.py"
    origin = weights.hugging_face(model)

    def convert(out: Path) -> None:
        weights.command(python("convert"), script, origin, "--outtype", "bf16", "--outfile", out)

    return weights.once(weights.folder(model) / "bf16.gguf", convert)


def _quantised(model: str, kind: str) -> Path:
    if model == TINY and kind == "Q4_1":
        return weights.prepare(model)
    _build_llama()  # whose tools make it, whoever asks first
    tool, origin = LLAMA / "bin" / "llama-quantize", _full_gguf(model)
    return weights.once(
        weights.folder(model) / f"{kind}.gguf",
        lambda out: weights.command(tool, "--allow-requantize", origin, out, kind),
    )


def _gguf_bytes(path: Path) -> int:
    """Of all tensors; both models use their embedding as head, so a token needs all of it."""
    from farthing.llm.checkpoints.opening import open_checkpoint
    from farthing.llm.spec import tensor_shapes

    checkpoint = open_checkpoint(path)
    return sum(checkpoint.stored(name).data.nbytes for name in tensor_shapes(checkpoint.spec))


def _llama(kind: str, models: tuple[str, ...] = NAMES, *, is_default: bool = True) -> Engine:
    def launch(path: Path, port: int) -> Launch:
        command = [str(LLAMA / "bin" / "llama-server"), "-m", str(path), "--host", "127.0.0.1", "--port", str(port)]
        threads = ["-t", "2", "-tb", "2", "-np", "32", "-c", "24576"]
        return Launch(
            command=[*command, *threads, "--no-ui", "--cache-ram", "0", "--no-cache-prompt", "--no-kv-unified"]
        )

    return Engine(
        name=f"llama-server-{kind}",
        about="llama.cpp's server, built for this processor, 32 slots of 768 tokens, prompt cache off",
        install=_build_llama,
        prepare=lambda model: _quantised(model, kind),
        streamed=lambda model: _gguf_bytes(_quantised(model, kind)),
        launch=launch,
        version=lambda: LLAMA_PACKAGE,
        models=models,
        is_default=is_default,
    )


# -- OpenVINO GenAI ---------------------------------------------------------------------------------------------------


def _openvino_model(model: str, bits: int) -> Path:
    """optimum-intel's export with the group sizes it is usually given: 64 for S, whose width no 128 divides."""
    origin = weights.hugging_face(model)
    group = [] if bits == 8 else ["--group-size", "64" if model == TINY else "128", "--ratio", "1.0", "--sym"]

    def convert(out: Path) -> None:
        install("convert")
        code = "from optimum.commands.optimum_cli import main; main()"
        task = ["--task", "text-generation-with-past", "--weight-format", f"int{bits}"]
        weights.command(python("convert"), "-c", code, "export", "openvino", "--model", origin, *task, *group, out)

    return weights.once(weights.folder(model) / f"openvino-int{bits}", convert)


def _openvino(bits: int) -> Engine:
    def launch(path: Path, _port: int) -> Launch:
        return Launch(command=[python("openvino"), str(INSIDE / "openvino_worker.py"), str(path), "1", "0"])

    return Engine(
        name=f"openvino-int{bits}",
        about="ContinuousBatchingPipeline in process, 1 GB of cache, prefix caching off: no HTTP, no text",
        install=lambda: install("openvino"),
        prepare=lambda model: _openvino_model(model, bits),
        streamed=lambda model: (_openvino_model(model, bits) / "openvino_model.bin").stat().st_size,
        launch=launch,
        version=version_of("openvino", "openvino-genai"),
        is_http=False,
    )


# -- vLLM -------------------------------------------------------------------------------------------------------------


def _install_vllm() -> None:
    install("vllm")
    vllm_on_cpu.add_alias(CACHE / "vllm")


def _vllm(models: tuple[str, ...] = NAMES) -> Engine:
    def launch(path: Path, port: int) -> Launch:
        server = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(path), "--served-model-name", "m"]
        where = ["--host", "127.0.0.1", "--port", str(port)]
        room = ["--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", "32", "--no-enable-prefix-caching"]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        return Launch(command=[python("vllm"), *server, *where, *room], environment=environment)

    return Engine(
        name="vllm-w8a8",
        about="vLLM's server on the CPU with zentorch's kernels, 8-bit weights and activations, prefix caching off",
        install=_install_vllm,
        prepare=vllm_on_cpu.eight_bits,
        streamed=vllm_on_cpu.streamed_bytes,
        launch=launch,
        version=version_of("vllm", vllm_on_cpu.PACKAGE),
        models=models,
        start_max_s=600,
    )


ALL: Final[tuple[Engine, ...]] = (
    _farthing("q8", guesses=False),
    _farthing("q4", guesses=False),
    _farthing("q8", guesses=True),
    _farthing("q4", guesses=True),
    _llama("Q4_0"),
    _llama("Q8_0"),
    _llama("Q4_1", (TINY,)),
    _openvino(8),
    _openvino(4),
    _vllm(),
)
BY_NAME: Final[dict[str, Engine]] = {engine.name: engine for engine in ALL}

__all__ = ["ALL", "BY_NAME", "LARGE", "TINY", "Engine", "Launch"]
