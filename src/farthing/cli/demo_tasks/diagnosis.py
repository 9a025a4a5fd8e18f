"""Is the tumour benign? Gradient-boosted trees on 30 measurements of a cell sample, over patients held out."""

from typing import Final

import numpy as np

from farthing.cli.demo_tasks.task import Finding, Infers, is_near
from farthing.repository.samples.recipes.wdbc import split
from farthing.types.tensors import Tensor

MODEL: Final = "wdbc-gbdt"
INPUT: Final = "input__0"
"""As Triton's forest back end calls it."""
AUC_EXPECTED: Final = 0.985
ACCURACY_EXPECTED: Final = 0.944
TOLERANCE: Final = 0.005


class Diagnosis:
    sample = MODEL
    question = "is the tumour benign?"

    def __init__(self) -> None:
        _, rows, _, truth = split()
        self._rows, self._truth = rows.astype(np.float32), truth

    def check(self, server: Infers) -> list[Finding]:
        from sklearn.metrics import roc_auc_score

        benign = probability_of_benign(server, self._rows)
        auc = float(roc_auc_score(self._truth, benign))
        accuracy = float(((benign > 0.5) == self._truth).mean())
        return [
            Finding(
                input=f"{len(self._rows)} patients held out",
                answer=f"AUC {auc:.3f}",
                expected=f"{AUC_EXPECTED:.3f}",
                is_right=is_near(auc, AUC_EXPECTED, TOLERANCE),
            ),
            Finding(
                input="the same",
                answer=f"accuracy {accuracy:.3f}",
                expected=f"{ACCURACY_EXPECTED:.3f}",
                is_right=is_near(accuracy, ACCURACY_EXPECTED, 2 * TOLERANCE),
            ),
        ]

    def ask(self, server: Infers) -> None:
        probability_of_benign(server, self._rows[:1])


def probability_of_benign(server: Infers, rows: Tensor) -> Tensor:
    """One probability a row."""
    (output,) = server.infer(MODEL, {INPUT: rows}).values()
    return output.reshape(len(rows), -1)[:, -1]
