"""Six sample models, the data to judge them by, the metric, and how much of it may be lost.

Nothing is drawn or made up but where it says so: photographs, cut and mirrored; sentences of Python's documentation;
Python's own source files; cases of scikit-learn's breast cancer data; a telephone call; lines of text on a page.
"""

import pydoc_data.topics
import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farthing.repository.samples import input_folder, sample_path, sample_paths

Arrays = dict[str, NDArray[Any]]
SEED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model and what is asked of its plan."""

    sample: str
    data: Callable[[], Arrays]
    metric: str | Callable[..., Any]
    drop_max: float
    answer_ms_max: float
    """The target: 99th percentile of the time to answer at full load."""
    connections: int
    """Clients that wait for an answer and ask again, when it is served."""

    @property
    def file(self) -> Path:
        """The model's file."""
        name = self.sample.split("/")
        folders = sample_paths(name[0])
        folder = next(f for f in folders if f.name == name[-1])
        [file] = [p for p in (folder / "1").iterdir() if p.suffix in {".onnx", ".txt", ".json", ".ubj"}]
        return file

    @property
    def metric_name(self) -> str:
        return self.metric if isinstance(self.metric, str) else self.metric.__name__

    @property
    def name(self) -> str:
        return self.sample.split("/")[-1]


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
    """1,200 pieces of Python's documentation, 32 tokens each, the shorter ones padded."""
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


def text_lines() -> Arrays:
    """640 lines of print, 48 x 320 pixels: a page's own, and lines of Python's documentation set in OpenCV's fonts;
    moved, scaled, blurred and made noisy."""
    import cv2

    chance, lines = np.random.default_rng(SEED), []
    page = cv2.imread(str(input_folder("photographs") / "page.png"))
    rows = ((10, 36), (46, 67), (66, 86), (84, 103), (101, 121), (119, 139))  # of the page, where its lines are
    words = re.sub(r"[^\x20-\x7e]", "", " ".join(pydoc_data.topics.topics.values())).split()
    fonts = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
    for number in range(640):
        if number % 4 == 0:
            top, bottom = rows[number // 4 % len(rows)]
            left = int(chance.integers(0, page.shape[1] // 2))
            picture = page[top:bottom, left : left + int((bottom - top) * 320 / 48)]
        else:
            at = int(chance.integers(0, len(words) - 4))
            text = " ".join(words[at : at + 4])[:22]
            picture = np.full((48, 320, 3), int(chance.integers(200, 256)), np.uint8)
            ink = tuple(int(v) for v in chance.integers(0, 90, 3))
            font = fonts[int(chance.integers(len(fonts)))]
            place = (int(chance.integers(2, 12)), int(chance.integers(30, 38)))
            cv2.putText(picture, text, place, font, float(chance.uniform(0.7, 0.95)), ink, 1 + number % 2, cv2.LINE_AA)
        picture = cv2.resize(picture, (320, 48), interpolation=cv2.INTER_LINEAR)
        picture = cv2.GaussianBlur(picture, (0, 0), float(chance.uniform(0.2, 0.9)))
        noisy = picture.astype(np.float32) + chance.normal(0, chance.uniform(1, 8), picture.shape)
        lines.append((noisy.clip(0, 255).transpose(2, 0, 1) / 127.5 - 1).astype(np.float32))
    return {"x": np.stack(lines)}


def chunks_of_sound() -> Arrays:
    """All chunks of a telephone call, each with the state that the chunks before it leave."""
    import onnxruntime
    import soundfile

    from farthing.cli.demo_tasks.voice import CHUNK, CONTEXT, RATE_HZ

    sound, _ = soundfile.read(input_folder("telephone-call") / "sample.wav", dtype="float32")
    session = onnxruntime.InferenceSession(str(TASKS["silero-vad"].file))
    state, heard = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    inputs, states = [], []
    for start in range(0, len(sound) // CHUNK * CHUNK, CHUNK):
        chunk = sound[start : start + CHUNK]
        inputs.append(np.concatenate([heard, chunk])[None])
        states.append(state)
        _, state = session.run(None, {"input": inputs[-1], "state": state, "sr": np.array(RATE_HZ, np.int64)})
        heard = chunk[-CONTEXT:]
    return {"input": np.stack(inputs), "state": np.stack(states), "sr": np.full(len(inputs), RATE_HZ, np.int64)}


def source_files() -> Arrays:
    """2,400 files of Python's own library, as Magika sees them; to show a bound of 1 % takes more than a thousand."""
    from farthing.cli.demo_tasks.file_types import features

    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in library.rglob("*") if path.is_file() and 64 < path.stat().st_size < 1 << 20)
    chosen = np.random.default_rng(SEED).permutation(len(files))[:2400]
    return {"bytes": np.stack([features(files[i].read_bytes()) for i in chosen])}


def cases() -> Arrays:
    """All 569 cases, with what was found."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return {"input__0": data.data.astype(np.float32), "labels": data.target}


def letters(outputs: Arrays, truth: Arrays) -> NDArray[Any]:
    """How much of each line is read as it was: 1 minus the edits between both, in parts of the longer one."""
    pairs = zip(_read(outputs), _read(truth), strict=True)
    return np.array([1 - _edits(now, was) / max(len(now), len(was), 1) for now, was in pairs])


def _read(outputs: Arrays) -> list[list[int]]:
    """The likeliest letter of each step, doubles and blanks left out (CTC)."""
    found = []
    for steps in next(iter(outputs.values())).argmax(-1):
        before = (0, *steps[:-1])
        found.append([int(k) for k, last in zip(steps, before, strict=True) if k not in (0, last)])
    return found


def _edits(some: list[int], other: list[int]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(other) + 1))
    for at, one in enumerate(some, 1):
        left, row[0] = row[0], at
        for place, two in enumerate(other, 1):
            left, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, left + (one != two))
    return row[-1]


_ALL: Final = (
    Task(sample="effnet-lite0", data=photographs, metric="top1", drop_max=0.02, answer_ms_max=100, connections=32),
    Task(sample="minilm-l6", data=sentences, metric="ranking", drop_max=0.01, answer_ms_max=100, connections=64),
    Task(
        sample="ppocr-v4/ppocr-rec", data=text_lines, metric=letters, drop_max=0.02, answer_ms_max=500, connections=16
    ),
    Task(sample="silero-vad", data=chunks_of_sound, metric="cosine", drop_max=0.005, answer_ms_max=20, connections=32),
    Task(sample="magika", data=source_files, metric="top1", drop_max=0.01, answer_ms_max=50, connections=64),
    Task(sample="wdbc-gbdt", data=cases, metric="auc", drop_max=0.005, answer_ms_max=20, connections=64),
)
TASKS: Final = {task.name: task for task in _ALL}
