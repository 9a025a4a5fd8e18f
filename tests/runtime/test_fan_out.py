"""Items on their way: how many at once, in which order they come back, and that the first error is the last word."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from farthing.runtime.fan_out import FanOut
from farthing.types.errors import EngineFailed, FarthingError, Overloaded
from farthing.types.requests import InferResponse, Timing


def answer(item: int) -> InferResponse:
    return InferResponse(model_name="m", model_version="1", id=str(item), outputs={}, timing=Timing(0, 0, 0, 0, 1, 1))


class Model:
    """Takes items and answers when told; some at once."""

    def __init__(self, count: int, inflight_max: int, at_once: set[int] = frozenset(), refused: int = -1) -> None:  # type: ignore[assignment]
        self.asked: dict[int, Callable[[InferResponse | FarthingError], None]] = {}
        self.begun: list[int] = []
        self.withdrawn: list[int] = []
        self.most = 0
        self.told: list[Any] = []
        self.at_once, self.refused = at_once, refused
        self.items = FanOut(count, inflight_max, self.ask, self.told.append, lambda *error: self.told.append(error))

    def ask(self, item: int, done: Callable[[InferResponse | FarthingError], None]) -> Callable[[], None]:
        self.begun.append(item)
        if item == self.refused:
            raise Overloaded("full")
        if item in self.at_once:
            done(answer(item))
        else:
            self.asked[item] = done
            self.most = max(self.most, len(self.asked))
        return lambda: self.withdrawn.append(item)

    def answer(self, item: int, error: FarthingError | None = None) -> None:
        self.asked.pop(item)(error or answer(item))


@given(st.integers(0, 20), st.integers(1, 5), st.sets(st.integers(0, 19)), st.randoms(use_true_random=False))
def test_answers_come_back_in_order_and_no_more_are_under_way_than_may_be(
    count: int, inflight: int, at_once: set[int], random: Any
) -> None:
    model = Model(count, inflight, at_once)
    model.items.pump()
    while model.asked:
        assert not model.told
        model.answer(random.choice(list(model.asked)))
    (answers,) = model.told
    assert [one.id for one in answers] == [str(item) for item in range(count)]
    assert model.most <= inflight
    assert model.begun == list(range(count))


def test_thousands_of_items_answered_at_once_need_no_deep_stack() -> None:
    model = Model(20_000, 3, set(range(20_000)))
    model.items.pump()
    assert len(model.told[0]) == 20_000


def test_the_first_error_withdraws_the_others_and_nothing_more_begins() -> None:
    model = Model(10, 3)
    model.items.pump()
    model.answer(1, EngineFailed("bad"))
    ((error, item, _),) = model.told
    assert (error.message, item) == ("bad", 1)
    assert sorted(model.withdrawn) == [0, 2]
    model.answer(0)
    assert model.begun == [0, 1, 2]
    assert len(model.told) == 1


def test_a_model_that_takes_no_more_fails_the_step() -> None:
    model = Model(10, 8, refused=4)
    model.items.pump()
    ((error, item, _),) = model.told
    assert (error.message, item, model.withdrawn) == ("full", 4, [0, 1, 2, 3])


def test_once_withdrawn_nobody_is_told() -> None:
    model = Model(10, 3)
    model.items.pump()
    model.items.withdraw()
    assert sorted(model.withdrawn) == [0, 1, 2]
    model.answer(0)
    assert model.told == []
