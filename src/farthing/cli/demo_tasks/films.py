"""Will this person like this film? The DLRM trained on MovieLens, over ratings held out from its training."""

from typing import Final

import numpy as np

from farthing.cli.demo_tasks.task import Finding, Infers
from farthing.repository.samples import sample_path

AUC_AT_LEAST: Final = 0.77
ROWS_AT_ONCE: Final = 500


class Films:
    sample = "movielens-dlrm"
    question = "will this person like this film?"

    def __init__(self) -> None:
        with np.load(sample_path(self.sample) / "held_out.npz") as held_out:
            self._inputs = {name: held_out[name] for name in ("categories", "film")}
            self._liked = held_out["liked"]

    def check(self, server: Infers) -> list[Finding]:
        from sklearn.metrics import roc_auc_score

        parts = []
        for start in range(0, len(self._liked), ROWS_AT_ONCE):
            rows = {name: values[start : start + ROWS_AT_ONCE] for name, values in self._inputs.items()}
            parts.append(server.infer("movielens-dlrm", rows)["liked"][:, 0])
        auc = float(roc_auc_score(self._liked, np.concatenate(parts)))
        return [
            Finding(
                input=f"{len(self._liked):,} ratings held out",
                answer=f"AUC {auc:.3f}",
                expected=f"at least {AUC_AT_LEAST:.2f}",
                is_right=auc >= AUC_AT_LEAST,
            )
        ]

    def ask(self, server: Infers) -> None:
        server.infer("movielens-dlrm", {name: values[:1] for name, values in self._inputs.items()})
