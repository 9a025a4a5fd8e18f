"""Makes the files that recipes run, each once: cleaned, in int8, in few bits, with some layers left in float.

How is `optimizer.graphs`', `quantise`'s, `ir`'s and `weights`' affair; whether the result is any good is
`optimizer.judging`'s.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from farthing.optimizer import graphs, ir
from farthing.optimizer.journal import Journal, Parts
from farthing.optimizer.loaded import Loaded
from farthing.optimizer.quantise import layers_of, quantise
from farthing.optimizer.recipes import Artefact, Recipe
from farthing.optimizer.samples import Samples
from farthing.optimizer.sensitivity import damage, parts_of, worst_first
from farthing.optimizer.timing import answers
from farthing.optimizer.trouble import masking
from farthing.optimizer.watch import Watch
from farthing.optimizer.weights import in_few_bits
from farthing.types.errors import LoadFailed
from farthing.types.tensors import Tensor

SENSITIVITY_SAMPLES: Final = 16
"""Calibrate each trial of a part, and show what it does."""

MASKS_SAMPLES: Final = 4
"""Looked at for masks."""

BITS: Final[Mapping[Artefact, int]] = {"int8_weights": 8, "int4_weights": 4}


class Making:
    """Files for the recipes of one model. One owner, one thread."""

    def __init__(
        self, loaded: Loaded, calibration: Samples, journal: Journal, watch: Watch, *, has_batch_axis: bool
    ) -> None:
        self._loaded = loaded
        self._calibration = calibration
        self._journal = journal
        self._watch = watch
        self._has_batch_axis = has_batch_axis
        self._masking: list[str] | None = None
        self._orders: dict[str, Sequence[tuple[str, ...]]] = {parts.of: parts.order for parts in journal.found(Parts)}
        """Precision -> parts of the network, those that it hurts most first; not there until somebody asks."""

    @property
    def clean_file(self) -> Path:
        """The cleaned graph, once `clean` has made it."""
        return self._journal.folder / "clean.onnx"

    def clean(self, sizes: Mapping[str, int], outputs: Sequence[str]) -> tuple[str, ...]:
        """Makes the cleaned file; answers what was done. Raises `LoadFailed`, `InvalidInput`."""
        done = graphs.clean(
            self._loaded.model, self.clean_file, sizes=sizes, outputs=outputs, has_batch_axis=self._has_batch_axis
        )
        self._loaded.files["clean", 0] = self.clean_file
        return done

    def make(self, recipe: Recipe) -> Path:
        """The file of this recipe, made now unless it is there. Raises `LoadFailed`, `Stopped`."""
        made = self._loaded.files.get(recipe.file)
        if made is None:
            made = self.place_of(recipe)
            made.parent.mkdir(exist_ok=True)
            torn = made.with_name("torn.onnx")  # until it is whole: a search may be killed at any moment
            if recipe.artefact == "ir":
                ir.keep_float(self._ir_file(), made, self._kept(recipe))
                self._loaded.files[recipe.file] = made
                return made
            if recipe.artefact in BITS:
                in_few_bits(self.clean_file, torn, BITS[recipe.artefact])
            else:
                self._quantise(recipe.artefact, self._calibration, torn, self._kept(recipe))
            torn.replace(made)
            self._loaded.files[recipe.file] = made
        return made

    def is_there(self, recipe: Recipe) -> bool:
        """Whether the file of a recipe need not be made, perhaps since an earlier part of the search has."""
        if recipe.file not in self._loaded.files and self.place_of(recipe).is_file():
            self._loaded.files[recipe.file] = self.place_of(recipe)
        return recipe.file in self._loaded.files

    def place_of(self, recipe: Recipe) -> Path:
        """Where its file is, or will be."""
        name = "model.xml" if recipe.artefact == "ir" else "model.onnx"
        return self._journal.folder / f"{recipe.artefact}-{recipe.parts_in_float}" / name

    def _kept(self, recipe: Recipe) -> list[str]:
        """Nodes that this recipe leaves in float."""
        if not recipe.parts_in_float:
            return []
        precision = recipe.precision
        if precision not in self._orders:
            self._orders[precision] = self._rank_parts(recipe)
            self._journal.note(Parts(of=precision, order=tuple(self._orders[precision])), self._watch.spent_s)
        order = self._orders[precision]
        if recipe.parts_in_float > len(order):
            raise LoadFailed(f"its layers make {len(order)} part{'s' if len(order) != 1 else ''} only")
        return [node for part in order[: recipe.parts_in_float] for node in part]

    def _rank_parts(self, recipe: Recipe) -> list[tuple[str, ...]]:
        """Parts of the network, those that the recipe's precision hurts most first: each is left to it alone."""
        is_ir = recipe.artefact == "ir"
        parts = parts_of(ir.layers_of(self._ir_file()) if is_ir else layers_of(self.clean_file))
        some = self._calibration.take(np.arange(min(SENSITIVITY_SAMPLES, len(self._calibration))))
        truth = self._answers_of(self._ir_file() if is_ir else self.clean_file, some, recipe.engine if is_ir else "")
        file = self._journal.folder / "part" / self.place_of(recipe).name
        file.parent.mkdir(exist_ok=True)
        damages = []
        for number, part in enumerate(parts):
            self._watch.say(
                f"asking what {recipe.precision} does to part {number + 1} of {len(parts)}",
                f"{recipe.precision} throughout loses too much; the parts it hurts most may stay in float",
            )
            others = [node for other in parts if other is not part for node in other]
            if is_ir:
                ir.keep_float(self._ir_file(), file, others)
                damages.append(damage(truth, self._answers_of(file, some, recipe.engine, recipe.parameters)))
            else:
                self._quantise(recipe.artefact, some, file, others)
                damages.append(damage(truth, self._answers_of(file, some)))
        return [parts[at] for at in worst_first(damages)]

    def _ir_file(self) -> Path:
        """The model as OpenVINO writes it."""
        file = self._journal.folder / "whole" / "model.xml"
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            ir.write_ir(self.clean_file if self.clean_file.is_file() else self._loaded.model, file)
        return file

    @property
    def _masks(self) -> list[str]:
        """Nodes that no int8 file touches."""
        if self._masking is None:
            inputs, keeps_axis = self._calibration.inputs, self._has_batch_axis
            rows = [
                {name: array[at : at + 1] if keeps_axis else array[at] for name, array in inputs.items()}
                for at in range(min(MASKS_SAMPLES, len(self._calibration)))
            ]
            self._masking = masking(self.clean_file, rows)
        return self._masking

    def _quantise(self, artefact: Artefact, samples: Samples, out: Path, kept: Sequence[str]) -> None:
        quantise(
            self.clean_file,
            artefact,
            samples,
            out,
            has_batch_axis=self._has_batch_axis,
            keep=[*kept, *self._masks],
            check=self._watch.check,
        )

    def _answers_of(
        self, file: Path, samples: Samples, engine: str = "", parameters: dict[str, str] | None = None
    ) -> dict[str, Tensor]:
        executable = self._loaded.load_file(file, engine or "onnxruntime", self._loaded.cores, parameters=parameters)
        try:
            return answers(executable, samples, rows=1, has_batch_axis=self._has_batch_axis, check=self._watch.check)
        finally:
            executable.close()
