"""What a search has found is there after any death of it, and never costs the search that wrote it."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.models import save, tiny_mlp

from farthing.optimizer import Target, optimize
from farthing.optimizer.journal import KEPT_MAX, Journal, Right, Round, Took, Wrong, key_of, open_journal
from farthing.optimizer.plan import Tried, read_plan
from farthing.optimizer.race import Turn
from farthing.optimizer.watch import Event

TURN = Turn(rows_per_s=10, run_ms_p99=1, runs=3)
FINDINGS = (
    Right(recipe="openvino f32", drop=None, errors=()),
    Wrong(tried=Tried(name="onnxruntime int8 (minmax)", out="loses too much")),
    Took(setting="a", round=0, turn=TURN),
)


def written(*findings: Any) -> Path:
    journal = open_journal("key")
    for at, finding in enumerate(findings):
        journal.note(finding, float(at))
    journal.close()
    return journal.folder


def test_what_was_noted_is_found_again() -> None:
    written(*FINDINGS)
    journal = open_journal("key")
    assert [entry.finding for entry in journal.entries] == list(FINDINGS)
    assert journal.spent_s == 2
    assert journal.found(Right) == [FINDINGS[0]]
    journal.discard()
    assert not journal.folder.exists()


@pytest.mark.parametrize("torn", [b'{"spent_s": 3', b'{"spent_s":3}\n', b"\xff\xff\n", b"{}\n" * 3])
def test_a_torn_end_is_cut_off_and_written_over(torn: bytes) -> None:
    folder = written(*FINDINGS[:2])
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(torn)
    journal = open_journal("key")
    assert len(journal.entries) == 2
    journal.note(FINDINGS[2], 9.0)
    journal.close()
    assert [entry.finding for entry in open_journal("key").entries] == list(FINDINGS)


def test_a_fresh_search_forgets_what_was_found_and_made() -> None:
    folder = written(*FINDINGS)
    (folder / "int8").mkdir()
    (folder / "int8" / "model.onnx").write_bytes(b"made")
    journal = open_journal("key", is_fresh=True)
    assert journal.entries == []
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]


def test_two_searches_at_once_do_not_share_a_journal() -> None:
    first, second = open_journal("key"), open_journal("key")
    assert first.folder != second.folder
    second.note(FINDINGS[0], 1.0)
    second.close()
    assert not second.folder.exists()
    first.discard()


def test_a_cache_that_cannot_be_written_costs_the_journal_alone(searches: Path) -> None:
    searches.parent.mkdir(exist_ok=True)
    searches.write_text("a file where a folder should be")
    journal = open_journal("key")
    journal.note(FINDINGS[0], 1.0)
    journal.close()
    assert not journal.folder.exists()


def test_a_disk_that_fills_up_costs_the_journal_alone(tmp_path: Path) -> None:
    file = mock.Mock()
    file.write.side_effect = OSError(28, "No space left on device")
    journal = Journal(tmp_path / "scratch", file)
    journal.note(FINDINGS[0], 1.0)
    journal.note(FINDINGS[0], 2.0)
    assert file.write.call_count == 1
    file.close.assert_called_once()


def test_searches_that_were_never_finished_do_not_pile_up(searches: Path) -> None:
    for number in range(KEPT_MAX + 4):
        open_journal(f"key{number}").close()
        os.utime(searches / f"key{number}", (number, number))
    left = open_journal("another")
    assert len(list(searches.iterdir())) <= KEPT_MAX
    left.discard()


def test_a_key_depends_on_all_that_it_is_made_of() -> None:
    assert key_of(Target(), "a") == key_of(Target(), "a")
    assert len({key_of(Target(), "a"), key_of(Target(), "b"), key_of(Target(drop_max=0.1), "a")}) == 3


SEARCH = """
import sys
from pathlib import Path
import numpy as np
import farthing.optimizer.journal as journal
from farthing.optimizer import Target, optimize
journal.cache_folder = lambda: Path(sys.argv[2])
optimize(sys.argv[1], Target(), sys.argv[3], budget_s=60, on_event=lambda e: print(e.found or e.doing, flush=True))
"""


@pytest.fixture
def job(tmp_path: Path, searches: Path) -> list[str]:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).uniform(-1, 1, (64, 32)).astype(np.float32))
    path = save(tmp_path / "mlp", tiny_mlp()).path
    return [sys.executable, "-c", SEARCH, str(path), str(searches.parent), str(tmp_path / "data.npz")]


def killed(job: list[str]) -> list[str]:
    """What a search said that was killed, as by `kill -9`, a while after it began to time."""
    said: list[str] = []
    with subprocess.Popen(job, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            said.append(line.strip())
            if sum(text.startswith("timing") for text in said) == 25:
                running.send_signal(signal.SIGKILL)
    return said


def test_a_search_that_was_killed_goes_on_where_it_was(job: list[str], searches: Path) -> None:
    before = killed(job)
    [folder] = searches.iterdir()
    seen: list[Event] = []
    plan = optimize(
        job[3],
        Target(),
        job[5],
        budget_s=60,
        on_event=seen.append,
        is_stopped=lambda: sum(e.doing.startswith("timing") for e in seen) > 5,
    )
    said = [event.found or event.doing for event in seen]
    assert any(text.startswith("going on with the search that was stopped after") for text in said)
    judged = [text for text in before if text.startswith("judging")]
    assert judged
    assert not any(text.startswith(("judging", "making")) for text in said)  # all that was known by then
    first = [text for text in before if text.startswith("timing")][:20]
    assert not set(first) & set(said[: said.index(next(t for t in said if t.startswith("timing"))) + 3])
    assert {one.name for one in plan.tried if one.turns} >= {text.removeprefix("timing ") for text in first}
    assert read_plan(Path(job[3])) == plan
    assert folder.exists()  # this one was stopped too


def test_a_search_that_ends_leaves_nothing_behind(tmp_path: Path, searches: Path) -> None:
    path = save(tmp_path / "mlp", tiny_mlp()).path
    data = {"x": np.random.default_rng(0).uniform(-1, 1, (64, 32)).astype(np.float32)}
    optimize(path, Target(), data, budget_s=1, is_written=False)
    assert list(searches.iterdir()) == []


def test_rounds_that_were_not_finished_begin_anew_but_for_the_first() -> None:
    from farthing.optimizer.racing import _rounds_of

    written(
        Took(setting="a", round=0, turn=TURN),
        Round(number=0, alive=("a",)),
        Took(setting="a", round=1, turn=TURN),
        Round(number=1, alive=("a",)),
        Took(setting="a", round=2, turn=TURN),
    )
    assert sorted(_rounds_of(open_journal("key"))) == [0, 1]
