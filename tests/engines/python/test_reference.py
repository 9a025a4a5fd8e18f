"""The models that docs/reference/python-models.md shows, run."""

import re
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

from farthing.engines.contract import Batch, Member, MemberAnswer
from farthing.engines.streaming import Part
from farthing.types.errors import InvalidInput

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "python-models.md"
SHOWN = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_first_model_normalises(load_model: Any, run_alone: Any) -> None:
    model = load_model(SHOWN[0])
    assert run_alone(model, x=np.ones((2, 4), np.float32))["y"].tolist() == [[0.5] * 4] * 2
    assert model.batch_rows_max == 64


def test_the_second_model_greets_and_refuses(load_model: Any) -> None:
    model = load_model(SHOWN[1], parameters={"greeting": "Hi"})
    names = np.array([b"Ada", b"Blaise"], object)
    members = (Member(rows=1), Member(rows=1, parameters={"language": "fr"}))
    greeted, refused = model.execute(Batch({"name": names}, ("greeting",), members), 0)
    assert greeted.outputs["greeting"].tolist() == [b"Hi, Ada"]
    assert greeted.parameters == {"rows": 1}
    assert isinstance(refused, InvalidInput)


def test_the_sixth_model_counts_down(load_model: Any) -> None:
    model = load_model(SHOWN[5])
    heard: Queue[Part] = Queue()
    model.begin(Batch({"from": np.array([3], np.int32)}, ("left",), (Member(rows=1),)), 0, [heard.put])
    parts = [heard.get(timeout=20) for _ in range(4)]
    answers = [part.answer for part in parts if isinstance(part.answer, MemberAnswer)]
    assert [answer.outputs["left"].tolist() for answer in answers] == [[3], [2], [1]]
    assert [answer.parameters for answer in answers] == [{}, {}, {"is_almost": True}]
    assert [part.is_last for part in parts] == [False, False, False, True]


def test_the_seventh_model_reverses(load_model: Any, run_alone: Any) -> None:
    model = load_model(SHOWN[6])
    assert run_alone(model, text=np.array([[b"stressed"]], object)).outputs["reversed"].tolist() == [[b"desserts"]]
    assert len(SHOWN) == 7  # the third to fifth ask other models: tests/runtime/test_*subrequests.py
