"""Loads that bring a configuration or files of their own: are they allowed, and where do the files live?

Whoever may bring a model's files decides what an engine reads; whoever may bring code runs it. So files are closed
unless the operator opens them, and those that could be code are taken only from callers with a key, if at all.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from farthing.config.model import ModelConfig
from farthing.config.server import LoadOverrides
from farthing.engines.registry import engine_for, engine_named
from farthing.repository import FoundModel, Repository
from farthing.repository.uploads import Uploads
from farthing.runtime.load_any import is_language_model
from farthing.types.errors import FarthingError, Forbidden, LoadFailed

DATA_ENDINGS: Final = frozenset({".onnx", ".onnx_data", ".data", ".xml", ".bin", ".txt", ".json", ".ubj"})
"""Files that engines read and never run: ONNX, OpenVINO, forests, their weights, labels."""

DATA_ENGINES: Final = frozenset({"onnxruntime", "openvino", "trees"})
"""Engines that run nothing of a model's folder, whatever its files are called."""


class Overrides:
    """What clients brought, by model."""

    def __init__(
        self, allowed: LoadOverrides, *, may_be_code: bool, repository: Repository, uploads: Uploads | None = None
    ) -> None:
        """`may_be_code`: whoever loads has shown a key for it."""
        self._allowed = allowed
        self._may_be_code = may_be_code
        self._repository = repository
        self._uploads = uploads or Uploads()
        self._folders: dict[str, Path] = {}

    def check(self, *, has_config: bool, files: Iterable[str]) -> None:
        """Raises `Forbidden` unless a load may bring these."""
        files = list(files)
        if files and self._allowed is not LoadOverrides.FILES:
            raise Forbidden(
                "load with `file:` entries is closed: whoever may write a model's files may run code here",
                hint="put the files into the repository; the operator can open this with --load-overrides files",
            )
        if has_config and self._allowed is LoadOverrides.NONE:
            raise Forbidden(
                "load with a configuration is closed",
                hint="put it into the repository; the operator can open this with --load-overrides config",
            )
        if not self._may_be_code:
            for file in files:
                if PurePosixPath(file).suffix.lower() not in DATA_ENDINGS:
                    raise Forbidden(
                        f"load with `file:{file[:80]}` is closed: it might hold code; without keys a load may bring: "
                        f"{' '.join(sorted(DATA_ENDINGS))}",
                        hint="start the server with --keys, or put the file into the repository",
                    )

    def write(self, name: str, config: ModelConfig, files: Mapping[str, bytes]) -> FoundModel:
        """The model made of these files alone; blocks. Raises `InvalidInput`, `LoadFailed`, `Forbidden`, `Overloaded`.

        What it wrote is `drop`ped or `keep`t by the caller.
        """
        folder = self._uploads.write(name, files)
        try:
            found = self._repository.look_in(folder, name=name, config=config)
            if not self._may_be_code:
                _check_engines(found)
        except OSError as error:
            self._uploads.remove(folder)
            raise LoadFailed(f"model `{name}`: {error.strerror}") from None
        except FarthingError as error:
            self._uploads.remove(folder)
            raise _plain(error, folder) from None
        return found

    def keep(self, name: str, found: FoundModel | None) -> Path | None:
        """Of this model these files are in use now, None: the repository's; answers those to drop once unused."""
        before = self._folders.pop(name, None)
        if found is not None:
            self._folders[name] = found.folder
        return before

    def drop(self, folder: Path) -> None:
        """Removes files that nobody uses any more; blocks."""
        self._uploads.remove(folder)

    def close(self) -> None:
        """Removes all; blocks."""
        self._uploads.close()


def _check_engines(found: FoundModel) -> None:
    """Raises `Forbidden` where an engine would run what was brought, whatever the files are called."""
    said = found.config.backend or found.config.platform
    if found.config.ensemble_scheduling is not None:
        return
    for version in found.versions:
        is_text = is_language_model(version.path, said)
        engine = "llm" if is_text else (engine_named(said) if said else engine_for(version.path)).name
        if engine not in DATA_ENGINES:
            raise Forbidden(
                f"a load may not bring a model of engine `{engine}` without a key",
                hint="start the server with --keys, or put the model into the repository",
            )


def _plain(error: FarthingError, folder: Path) -> FarthingError:
    """The same error with paths as the client wrote them: where a server keeps its files is nobody's business."""
    error.message = error.message.replace(f"{folder}/", "").replace(str(folder), folder.name)
    error.args = (error.message,)
    return error
