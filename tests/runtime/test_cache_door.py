"""The cache's door in any history of answers, failures and clients that leave, against a model that is a list."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.fakes import VirtualLoop

from farthing.runtime.cached import CacheDoor
from farthing.runtime.response_cache import ENTRY_BYTES, ResponseCache
from farthing.telemetry.statistics import ModelStatistics
from farthing.types.errors import EngineFailed, FarthingError, Overloaded
from farthing.types.models import ModelSpec
from farthing.types.requests import InferRequest, InferResponse

SPEC = ModelSpec(name="m", version=1, platform="p", inputs=(), outputs=(), batch_rows_max=8)


class Model:
    """Requests that a model has taken and not answered."""

    def __init__(self) -> None:
        self.under_way: dict[int, tuple[int, InferRequest, Any]] = {}
        self.taken = 0
        self.is_full = False

    def submit(self, load: int, request: InferRequest, rows: int, signature: Any, arrival_ns: int, done: Any) -> Any:
        if self.is_full:
            raise Overloaded("full")
        self.taken += 1
        number = self.taken
        self.under_way[number] = (load, request, done)

        def withdraw() -> None:
            assert self.under_way.pop(number, None) is not None, "withdrawn once, and before it was answered"

        return withdraw


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.virtual = VirtualLoop()
        self.cache = ResponseCache(3 * ENTRY_BYTES)
        self.statistics = ModelStatistics()
        self.model = Model()
        self.load = 0
        self.renew()
        self.waiting: dict[int, tuple[float, Callable[[], None]]] = {}
        self.asked = 0

    def renew(self) -> None:
        self.load += 1
        self.door = CacheDoor(
            submit=partial(self.model.submit, self.load),
            spec=SPEC,
            statistics=self.statistics,
            cache=self.cache,
            load=self.load,
            scheduler=self.virtual,
            clock=self.virtual.clock,
        )

    @rule(value=st.integers(0, 4), priority=st.sampled_from([0, 0, 1]), timeout_us=st.sampled_from([0, 0, 5]))
    def ask(self, value: int, priority: int, timeout_us: int) -> None:
        self.asked += 1
        number, load = self.asked, self.load

        def done(answer: InferResponse | FarthingError) -> None:
            asked, _ = self.waiting.pop(number)  # fails if it is told twice, or after it left
            if isinstance(answer, InferResponse):
                assert answer.id == str(number)
                assert answer.outputs["y"].tolist() == [asked, load], "of the load it was asked of"

        inputs = {"x": np.array([value], np.float32)}
        request = InferRequest(model_name="m", id=str(number), inputs=inputs, priority=priority, timeout_us=timeout_us)
        self.waiting[number] = (value, lambda: None)
        try:
            withdraw = self.door.submit(request, 1, None, self.virtual.clock.now_ns(), done)
        except Overloaded:
            del self.waiting[number]
        else:
            self.waiting[number] = (value, withdraw)

    @precondition(lambda self: self.model.under_way)
    @rule(data=st.data(), fails=st.booleans())
    def answer(self, data: st.DataObject, fails: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.under_way)))
        load, request, done = self.model.under_way.pop(number)
        if fails:
            done(EngineFailed("no"))
            return
        y = np.array([float(request.inputs["x"][0]), load])
        timing: Any = None
        done(InferResponse(model_name="m", model_version="1", id=request.id, outputs={"y": y}, timing=timing))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        _, withdraw = self.waiting.pop(number)
        withdraw()
        withdraw()  # connections may say so twice

    @rule(is_full=st.booleans())
    def fill(self, is_full: bool) -> None:
        self.model.is_full = is_full

    @rule()
    def reload(self) -> None:
        self.door.close()
        self.renew()

    @rule()
    def turn(self) -> None:
        self.virtual.run()

    @invariant()
    def holds(self) -> None:
        self.cache.check_integrity()
        assert len(self.model.under_way) <= len(self.waiting), "nothing runs that nobody waits for"

    def teardown(self) -> None:
        self.model.is_full = False
        for _ in range(3):
            for number in list(self.model.under_way):
                load, request, done = self.model.under_way.pop(number)
                y = np.array([float(request.inputs["x"][0]), load])
                timing: Any = None
                done(InferResponse(model_name="m", model_version="1", id=request.id, outputs={"y": y}, timing=timing))
            self.virtual.run()
        assert not self.waiting, "everybody who stayed was told"


TestHistory = History.TestCase
