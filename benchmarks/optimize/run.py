"""What `farthing optimize` finds for four sample models, on data they were not made from.

    python benchmarks/optimize/run.py                       all of them (some 12 minutes on two cores)
    python benchmarks/optimize/run.py minilm-l6 --time 60   one, in a minute

Prints a table: the plan, its cost beside (a) the model as it came, ONNX Runtime (or its own engine) on all cores, one
request at a time, and (b) the best setting of that engine alone; and what is lost, on samples that took no part. Data:
photographs of the samples, cut and mirrored; sentences of Python's own documentation, 32 tokens each; Python's own
source files; cases of scikit-learn's breast cancer data.
"""

import argparse
import json
import pydoc_data.topics
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farthing.optimizer import Plan, Target, optimize
from farthing.repository.samples import sample_path

Arrays = dict[str, NDArray[Any]]
SEED: Final = 3


def photographs() -> Arrays:
    """1,200 cuts of six photographs, half of them mirrored."""
    import cv2

    from farthing.cli.demo_tasks.pictures import EXPECTED, prepare, read_picture

    chance, cuts = np.random.default_rng(SEED), []
    pictures = [read_picture(name) for name, _, _ in EXPECTED]
    for number in range(1200):
        picture = pictures[number % len(pictures)]
        height, width = picture.shape[:2]
        side = int(chance.uniform(0.45, 1.0) * min(height, width))
        top, left = int(chance.integers(0, height - side + 1)), int(chance.integers(0, width - side + 1))
        cut = picture[top : top + side, left : left + side]
        cuts.append(prepare(cv2.flip(cut, 1) if number % 2 else np.ascontiguousarray(cut)))
    return {"image": np.stack(cuts).astype(np.float32)}


def sentences() -> Arrays:
    """1,200 pieces of Python's documentation."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(sample_path("minilm-l6") / "tokenizer.json"))
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=32)
    text = " ".join(pydoc_data.topics.topics.values())
    found = [s.strip() for s in re.split(r"(?<=[.:])\s+", re.sub(r"\s+", " ", text)) if 40 < len(s) < 300]
    chosen = np.random.default_rng(SEED).permutation(len(found))[:1200]
    encoded = tokenizer.encode_batch([found[i] for i in chosen])
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


def source_files() -> Arrays:
    """1,200 files of Python's own library, as Magika sees them."""
    from farthing.cli.demo_tasks.file_types import features

    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in library.rglob("*") if path.is_file() and 64 < path.stat().st_size < 1 << 20)
    chosen = np.random.default_rng(SEED).permutation(len(files))[:1200]
    return {"bytes": np.stack([features(files[i].read_bytes()) for i in chosen])}


def cases() -> Arrays:
    """All 569 cases, with what was found."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return {"input__0": data.data.astype(np.float32), "labels": data.target}


TASKS: Final = {
    "effnet-lite0": (photographs, "top1", 0.02),
    "minilm-l6": (sentences, "cosine", 0.005),
    "magika": (source_files, "top1", 0.01),
    "wdbc-gbdt": (cases, "auc", 0.005),
}
"""Sample -> data, metric, the drop allowed."""


def search(name: str, seconds: float) -> tuple[Plan, float]:
    """The plan of a copy of the sample, and how long it took to find."""
    make, metric, drop_max = TASKS[name]
    [source] = [p for p in (sample_path(name) / "1").iterdir() if p.suffix in {".onnx", ".txt", ".json", ".ubj"}]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / source.name
        shutil.copyfile(source, model)
        started = time.monotonic()
        plan = optimize(
            model,
            Target(drop_max=drop_max, metric=metric),
            make(),
            budget_s=seconds,
            on_event=lambda event: print(
                f"\r{name}: {event.spent_s:4.0f} s  {event.doing:70.70}", end="", file=sys.stderr
            ),
        )
        print(file=sys.stderr)
        return plan, time.monotonic() - started


def row(name: str, plan: Plan, seconds: float) -> str:
    """One line of the table."""
    first = plan.tried[-1].name.partition(" ")[0]
    engine = "trees" if first == "trees" else "onnxruntime"
    alone = max(t.rows_per_s for t in plan.tried if t.turns and t.name.startswith(f"{engine} f32"))
    lost = f"{plan.drop.mean:.2%} (at most {plan.drop.upper:.2%})" if plan.drop else "none"
    way = f"{plan.engine} {plan.precision}, {plan.instances} x {plan.threads} threads, {plan.rows} rows"
    rates = f"{plan.rows_per_s:,.0f} | {plan.default_rows_per_s:,.0f} ({plan.times_cheaper:.1f}) | {alone:,.0f}"
    return f"| {name} | {way} | {rates} ({plan.rows_per_s / alone:.1f}) | {lost} | {seconds:.0f} |"


def main() -> None:
    """Searches and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(TASKS), metavar="SAMPLE")
    parser.add_argument("--time", type=float, default=180, help="seconds for each (180)")
    parser.add_argument("--out", type=Path, help="a JSON file for the plans")
    options = parser.parse_args()
    print("| model | plan | rows/s | as it came (times) | best of its engine in float32 (times) | lost | search, s |")
    print("|---|---|---|---|---|---|---|")
    plans = {}
    for name in options.names:
        plan, seconds = search(name, options.time)
        plans[name] = plan
        print(row(name, plan, seconds), flush=True)
    if options.out:
        import msgspec

        options.out.write_text(json.dumps({name: msgspec.to_builtins(plan) for name, plan in plans.items()}, indent=1))


if __name__ == "__main__":
    main()
