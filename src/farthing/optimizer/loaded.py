"""The model in all the ways it has been loaded so far, each once.

Which ways there are is `optimizer.recipes`'; who needs which, and until when, is for the callers.
"""

from collections.abc import Callable
from pathlib import Path

from farthing.engines.contract import Executable, ModelSource
from farthing.engines.registry import engine_named
from farthing.optimizer.recipes import Artefact, Recipe

Place = tuple[str, int, int]
"""A recipe's name, threads of an instance, instances."""


class Loaded:
    """Executables by recipe, threads and instances. One owner, one thread; `close` ends it."""

    def __init__(self, model: Path, cores: int) -> None:
        self.model = model
        self.cores = cores
        self.files: dict[tuple[Artefact, int], Path] = {("", 0): model}
        """`Recipe.file` -> the file made for it."""
        self._executables: dict[Place, Executable] = {}

    def load(self, recipe: Recipe, threads: int, instances: int = 1) -> Executable:
        """This recipe, so wide. Raises `LoadFailed`."""
        place = (recipe.name, threads, instances)
        if place not in self._executables:
            self._executables[place] = self.load_file(
                self.files[recipe.file], recipe.engine, threads, instances, recipe.parameters
            )
        return self._executables[place]

    def load_file(
        self, file: Path, engine: str, threads: int, instances: int = 1, parameters: dict[str, str] | None = None
    ) -> Executable:
        """A file for the caller to close. Raises `LoadFailed`."""
        return engine_named(engine).load(
            ModelSource(
                name=self.model.stem,
                version=1,
                path=file,
                folder=file.parent,
                instances=instances,
                threads=threads,
                parameters=parameters or {},
            )
        )

    def keep(self, wanted: Callable[[Place], bool]) -> None:
        """Lets go of all others."""
        for place in [place for place in self._executables if not wanted(place)]:
            self._executables.pop(place).close()

    def close(self) -> None:
        """Lets go of everything."""
        self.keep(lambda place: False)
