"""The demo, whole: a real server in its own process, real models, real inputs, golden answers."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from farthing.cli.demo import Outcome
from farthing.cli.demo_tasks import DEFAULT_TASKS, TASKS, Finding, task_named
from farthing.cli.demo_tasks.file_types import features
from farthing.client.chat import Message, Piece
from farthing.repository.samples.recipes.ppocr_page.text_boxes import boxes_in, crop
from farthing.types.errors import NotFound
from farthing.types.tensors import Tensor

START = [sys.executable, "-c", "from farthing.cli.main import main; main()", "demo"]


@pytest.mark.samples
@pytest.mark.timeout(400)
def test_every_answer_of_every_task_is_right_over_the_wire() -> None:
    done = subprocess.run(
        [*START, "--json", "--seconds", "0.1"], capture_output=True, text=True, timeout=380, check=False
    )
    report = json.loads(done.stdout)
    wrong = [
        (task["sample"], finding["input"], finding["answer"])
        for task in report["tasks"]
        for finding in task["findings"]
        if not finding["is_right"]
    ]
    assert wrong == []
    assert [(task["sample"], task["error"]) for task in report["tasks"]] == [(name, "") for name in DEFAULT_TASKS]
    assert all(task["latency_ms"] > 0 and task["requests_per_s"] > 0 for task in report["tasks"])
    assert report["is_right"]
    assert done.returncode == 0


@pytest.mark.samples
def test_a_person_reads_the_answer_the_expectation_and_the_speed() -> None:
    done = subprocess.run(
        [*START, "sample:wdbc-gbdt", "--seconds", "0.1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "wdbc-gbdt: is the tumour benign?"
    assert lines[1] == "  right  143 patients held out: AUC 0.985   (expected 0.985)"
    assert lines[3].endswith("requests/s")
    assert lines[-1].startswith("1 of 1 tasks right")


class Blind:
    """A server that answers everything with zeros of the right shape."""

    def infer(
        self, model: str, inputs: Mapping[str, ArrayLike], outputs: Sequence[str] | None = None
    ) -> Mapping[str, Tensor]:
        rows = len(np.asarray(next(iter(inputs.values()))))
        shapes = {
            "effnet-lite0": {"logits": (rows, 1000)},
            "minilm-l6": {"embedding": (rows, 384)},
            "ppocr-v4": {"text": (0,), "score": (0,)},
            "silero-vad": {"output": (1, 1), "stateN": (2, 1, 128)},
            "magika": {"target_label": (rows, 214)},
            "wdbc-gbdt": {"output__0": (rows, 1)},
            "movielens-dlrm": {"liked": (rows, 1)},
            "centerface": {"537": (1, 1, 128, 128), "538": (1, 2, 128, 128), "539": (1, 2, 128, 128)},
            "basic-pitch": {"StatefulPartitionedCall:1": (1, 172, 88)},
        }
        return {name: np.zeros(shape, np.float32) for name, shape in shapes[model].items()}

    def chat(self, model: str, messages: Sequence[Message], **fields: Any) -> Iterator[Piece]:
        yield Piece(text="0")


@pytest.mark.samples
@pytest.mark.parametrize("name", DEFAULT_TASKS)
def test_a_server_that_answers_nonsense_is_found_out(name: str) -> None:
    findings = task_named(name).check(Blind())
    assert not all(finding.is_right for finding in findings)


def test_a_task_is_right_only_if_all_its_answers_are() -> None:
    right = Finding(input="", answer="", expected="", is_right=True)
    wrong = Finding(input="", answer="", expected="", is_right=False)
    assert Outcome(sample="", question="", findings=[right, right]).is_right
    assert not Outcome(sample="", question="", findings=[right, wrong]).is_right
    assert not Outcome(sample="", question="", findings=[]).is_right
    assert not Outcome(sample="", question="", findings=[right], error="gone").is_right


def test_an_unknown_task_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match="tasks: effnet-lite0"):
        task_named("resnet")
    done = subprocess.run([*START, "resnet"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert ", ".join(TASKS) in done.stderr


@given(st.binary(max_size=10_000))
def test_a_file_of_any_size_becomes_a_row_of_bytes_and_blanks(content: bytes) -> None:
    row = features(content)
    assert row.shape == (2048,)
    assert row.dtype == np.int32
    front = bytes(row[:1024][row[:1024] < 256].astype(np.uint8))
    back = bytes(row[1024:][row[1024:] < 256].astype(np.uint8))
    assert content[:4096].lstrip().startswith(front)
    assert content[-4096:].rstrip().endswith(back)


def test_a_bright_bar_is_one_box_grown_on_all_sides_and_cut_out_upright() -> None:
    text_map = np.zeros((64, 256), np.float32)
    text_map[20:30, 40:200] = 0.9
    (box,) = boxes_in(text_map, (128, 512))  # the picture is twice the map's size
    left, top, right, bottom = box[:, 0].min(), box[:, 1].min(), box[:, 0].max(), box[:, 1].max()
    assert left < 2 * 40 < 2 * 200 < right
    assert top < 2 * 20 < 2 * 30 < bottom
    height, width = crop(np.zeros((128, 512, 3), np.uint8), box).shape[:2]
    assert width > 4 * height


def test_boxes_are_read_from_top_to_bottom_and_left_to_right() -> None:
    text_map = np.zeros((128, 256), np.float32)
    for row, column in ((80, 20), (22, 140), (20, 20)):
        text_map[row : row + 12, column : column + 90] = 0.9
    corners = [box[0].tolist() for box in boxes_in(text_map, (128, 256))]
    assert [(x < 128, y < 64) for x, y in corners] == [(True, True), (False, True), (True, False)]


def test_an_empty_page_has_no_lines() -> None:
    assert boxes_in(np.zeros((64, 64), np.float32), (64, 64)) == []
