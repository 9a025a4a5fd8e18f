"""The soak's short form; `make soak` is the long one."""

from pathlib import Path

import pytest
from tests.soak.soak import Holding, compared, soak


@pytest.mark.timeout(120)
def test_under_mixed_load_every_answer_is_right_and_nothing_is_left_over(tmp_path: Path) -> None:
    assert soak(tmp_path, rounds=3, round_s=1.5, warm_s=1e9) == []


def test_what_grew_is_told() -> None:
    warm = Holding(100 << 20, 20, 10, 1, 2, 3)
    assert list(compared(warm, warm)) == []
    grown = Holding(200 << 20, 21, 30, 1, 2, 3)
    assert [fault.split(":")[0] for fault in compared(warm, grown)] == ["open files", "threads", "memory"]
