"""Both ends of a process's subrequests, in one process: what travels, what is copied, what is believed."""

import asyncio
import gc
import mmap
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving import eventually

from farthing.engines.contract import Sender, Subrequest
from farthing.engines.python import subrequest_messages as messages
from farthing.engines.python.channel import ARENA_BYTES_KEPT, Arena, Place
from farthing.engines.python.subrequest_answers import Answers
from farthing.engines.python.subrequest_client import SubrequestClient, answered_here
from farthing.engines.python.subrequest_messages import SUBREQUESTS_MAX, Ask, Put
from farthing.engines.python.subrequest_port import SubrequestPort
from farthing.engines.python.subrequest_question import Question, Reply
from farthing.engines.python.subrequest_tensors import HELD_MAX
from farthing.types.errors import (
    Cancelled,
    EngineFailed,
    FarthingError,
    InvalidInput,
    ModelNotFound,
    NotFound,
    Overloaded,
    TooLarge,
)
from farthing.types.requests import InferRequest, InferResponse, StreamedResponse, Timing
from farthing.types.tensors import Tensor

Done = Callable[[InferResponse | FarthingError], None]


class Server:
    """Stands for the runtime: answers with `answer`, or keeps what it was asked until it is told."""

    def __init__(self) -> None:
        self.seen: list[Subrequest] = []
        self.waiting: list[tuple[Subrequest, Done]] = []
        self.withdrawn: list[Subrequest] = []
        self.detached: list[Subrequest] = []
        self.is_over = threading.Event()
        self.calls: list[Callable[[], None]] = []
        self.says: list[StreamedResponse] = []
        self.takes: list[Subrequest] = []
        self.holds = False
        self.answer: Callable[[Subrequest], InferResponse | FarthingError] = echo

    def watch(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        self.loop = threading.Thread(target=self._watch, args=(sock, on_readable))
        self.loop.start()

    def _watch(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while not self.is_over.is_set():
            if poll.poll(5):
                on_readable()
                self.end_turn()

    def unwatch(self, sock: socket.socket, then: Callable[[], None]) -> None:
        self.is_over.set()
        if threading.current_thread() is not self.loop:
            self.loop.join()
        then()

    def soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)
        if threading.current_thread() is not self.loop:
            self.end_turn()

    def on_loop(self, call: Callable[[], None]) -> None:
        self.soon(call)

    def end_turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def submit(self, subrequest: Subrequest, done: Done) -> None:
        self.seen.append(subrequest)
        if self.holds:
            self.waiting.append((subrequest, done))
        else:
            done(self.answer(subrequest))

    def stream(self, subrequest: Subrequest, hear: Callable[[StreamedResponse], None]) -> None:
        self.seen.append(subrequest)
        for said in self.says:
            hear(said)

    def taken(self, subrequest: Subrequest) -> None:
        self.takes.append(subrequest)

    def withdraw(self, subrequest: Subrequest) -> None:
        self.withdrawn.append(subrequest)

    def detach(self, subrequest: Subrequest) -> None:
        self.detached.append(subrequest)


def echo(subrequest: Subrequest) -> InferResponse:
    return response(subrequest.inputs)


def response(outputs: dict[str, Tensor]) -> InferResponse:
    return InferResponse(
        model_name="other", model_version="1", outputs=outputs, parameters={"n": 1}, timing=Timing(0, 0, 0, 0, 1, 1)
    )


class Ends:
    """A port and a client that are connected."""

    def __init__(self) -> None:
        self.server = Server()
        self.nonsense = threading.Event()
        asked, asking = messages.pair()
        self.asking = asking
        self.sender = Sender("model", 0, lambda: 1)
        self.port = SubrequestPort(
            asked, model="m", sender=self.sender, subrequests=self.server, on_nonsense=self.nonsense.set
        )
        self.client = SubrequestClient(asking)

    def ask(self, **fields: Any) -> dict[str, Tensor]:
        return self.client.ask(Question(model="other", **fields)).outputs

    def close(self) -> None:
        self.asking.close()
        self.port.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    pair = Ends()
    yield pair
    pair.close()


def base_of(tensor: Tensor) -> Any:
    """What owns the memory that an array looks at."""
    base: Any = tensor
    while True:
        if isinstance(base, memoryview):
            base = base.obj
        elif isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        else:
            return base


LARGE = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)


def test_each_side_looks_at_what_the_other_wrote_and_nothing_is_written_twice(ends: Ends) -> None:
    made = LARGE * 2
    ends.server.answer = lambda _: response({"y": made})
    outputs = ends.ask(inputs={"x": LARGE, "small": np.arange(3)}, outputs=("y",), id="i", parameters={"p": 2})
    [seen] = ends.server.seen
    assert (seen.model_name, seen.outputs, seen.id, seen.parameters) == ("other", ("y",), "i", {"p": 2})
    assert np.array_equal(seen.inputs["x"], LARGE)
    assert isinstance(base_of(seen.inputs["x"]), mmap.mmap)
    assert isinstance(base_of(outputs["y"]), mmap.mmap)
    assert np.array_equal(outputs["y"], made)
    outputs["y"][0, 0] = 9  # it is the model's own
    assert made[0, 0] == 0


def test_what_lies_in_shared_memory_already_is_named_and_not_copied(ends: Ends) -> None:
    first = ends.ask(inputs={"x": LARGE})["x"]
    first[5, 5] = -1
    ends.ask(inputs={"x": first[5:, :], "whole": first, "turned": first.T})
    seen = ends.server.seen[-1].inputs
    assert seen["x"][0, 5] == -1
    first[5, 5] = -2  # seen by the server at once, for it is the same memory
    assert seen["x"][0, 5] == seen["whole"][5, 5] == -2
    assert seen["turned"][5, 5] == -1  # which was gathered, since it lies the other way


def test_inputs_of_the_batch_are_sent_on_as_they_lie_as_long_as_it_runs(ends: Ends) -> None:
    arena = Arena.create()
    arena.grow(LARGE.nbytes)
    ours, theirs = arena.memory(), Arena(os.dup(arena.fd)).memory()
    ours[:] = 7
    for _ in range(2):
        ends.port.begin_batch((), ours)
        ends.client.begin_batch(theirs)
        assert ends.ask(inputs={"x": theirs[64:8256]})["x"][0] == 7
        assert np.shares_memory(ends.server.seen[-1].inputs["x"], ours)
        ends.port.end_batch()
        with pytest.raises(InvalidInput, match="after the batch had ended"):
            ends.ask(inputs={"x": theirs[64:8256]})
        ends.client.end_batch()
    assert ends.ask(inputs={"x": theirs[64:8256]})["x"][0] == 7  # a copy
    assert not np.shares_memory(ends.server.seen[-1].inputs["x"], ours)
    arena.close()


def test_memory_is_used_again_once_nobody_looks_at_it(ends: Ends) -> None:
    for _ in range(50):
        ends.ask(inputs={"x": LARGE})
    assert len(ends.port._inputs) == 1
    assert len(ends.port._writer._answers._arenas) == 1
    kept = [ends.ask(inputs={"x": np.full(3, n)})["x"] for n in range(HELD_MAX + 20)]
    assert [array[0] for array in kept] == list(range(HELD_MAX + 20))
    assert len(ends.port._writer._answers._arenas) <= HELD_MAX + 2
    assert not isinstance(base_of(kept[-1]), mmap.mmap)  # too many are kept: a copy
    del kept
    gc.collect()
    ends.ask(inputs={"x": np.zeros(1)})
    assert len(ends.port._writer._answers._free) >= HELD_MAX


def test_of_large_pieces_of_memory_that_are_free_one_is_kept(ends: Ends) -> None:
    large = np.ones(ARENA_BYTES_KEPT + (1 << 20), np.uint8)
    kept = [ends.ask(inputs={"x": large})["x"] for _ in range(3)]
    arenas = list(ends.port._writer._answers._arenas.values())
    full = [os.fstat(arena.fd).st_blocks * 512 for arena in arenas]
    assert min(full) > ARENA_BYTES_KEPT
    kept.clear()
    ends.ask(inputs={"x": np.zeros(1)})
    left = sorted(os.fstat(arena.fd).st_blocks * 512 for arena in arenas)
    assert left[-2] <= ARENA_BYTES_KEPT < left[-1]


def test_texts_go_there_and_back(ends: Ends) -> None:
    texts = np.array([[b"\x00\xff", "grün", b""]], dtype=object)
    assert ends.ask(inputs={"x": texts})["x"].tolist() == [[b"\x00\xff", "grün".encode(), b""]]


def test_errors_come_back_by_their_kind(ends: Ends) -> None:
    for error, kind in (
        (NotFound("no"), ModelNotFound),
        (Overloaded("full", retry_after_s=2.5, hint="later"), Overloaded),
        (FarthingError("odd"), EngineFailed),
        (InvalidInput("x" * 1_000_000), InvalidInput),
    ):
        ends.server.answer = lambda _, error=error: error  # type: ignore[misc]
        with pytest.raises(kind) as raised:
            ends.ask(inputs={})
        assert raised.value.message == error.message[:4000]
        assert raised.value.retry_after_s == error.retry_after_s
        assert raised.value.hint == error.hint


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"inputs": {"x": np.zeros(2, np.complex64)}}, InvalidInput),
        ({"inputs": {"x": np.array([3], object)}}, InvalidInput),
        ({"inputs": {}, "parameters": {"p": 1 << 70}}, InvalidInput),
        ({"inputs": {}, "parameters": {"p": "x" * 200_000}}, TooLarge),
    ],
)
def test_what_cannot_be_sent_is_refused_and_costs_no_memory(ends: Ends, fields: Any, kind: type[FarthingError]) -> None:
    for _ in range(SUBREQUESTS_MAX + 1):
        with pytest.raises(kind, match="a request to model `other`"):
            ends.ask(**fields)
    assert ends.ask(inputs={"x": np.ones(1)})["x"] == 1


def test_an_answer_that_cannot_be_handed_over_says_so(ends: Ends) -> None:
    ends.server.answer = lambda _: response({"y": np.zeros(2, np.complex64)})
    with pytest.raises(EngineFailed, match=r"cannot be handed over.*complex64"):
        ends.ask(inputs={})


async def test_more_than_may_be_under_way_take_turns_and_who_leaves_is_withdrawn(ends: Ends) -> None:
    ends.server.holds = True
    asking = [
        asyncio.ensure_future(ends.client.ask_async(Question(model="other", inputs={"x": np.full(2000, n)})))
        for n in range(SUBREQUESTS_MAX + 30)
    ]
    await until(lambda: len(ends.server.waiting) == SUBREQUESTS_MAX)
    leaving = asking[1 : SUBREQUESTS_MAX + 10 : 2]  # of those under way, and of those that wait for their turn
    for task in leaving:
        task.cancel()
    await until(lambda: len(ends.server.withdrawn) == SUBREQUESTS_MAX // 2)
    await until(lambda: len(ends.server.waiting) == SUBREQUESTS_MAX + 25)
    ends.server.holds = False
    for subrequest, done in ends.server.waiting:
        if subrequest not in ends.server.withdrawn:
            done(echo(subrequest))
    answers = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 20)
    told = {n: a.outputs["x"][0] for n, a in enumerate(answers) if not isinstance(a, BaseException)}
    assert all(n == value for n, value in told.items())
    assert len(told) == len(asking) - len(leaving)
    assert not ends.port._under_way


async def test_threads_and_coroutines_ask_at_the_same_time(ends: Ends) -> None:
    def work(start: int) -> bool:
        return all(ends.ask(inputs={"x": np.full(5, n)})["x"][0] == n for n in range(start, start + 30))

    async def work_async(start: int) -> bool:
        asked = [Question(model="other", inputs={"x": np.full(5, n)}) for n in range(start, start + 30)]
        return all([(await ends.client.ask_async(q)).outputs["x"][0] == q.inputs["x"][0] for q in asked])

    threads = [asyncio.to_thread(work, n * 100) for n in range(6)]
    assert all(await asyncio.wait_for(asyncio.gather(*threads, *map(work_async, range(1000, 1600, 100))), 30))


def test_a_batch_that_ends_leaves_its_requests_to_nobody_and_a_process_takes_them_along(ends: Ends) -> None:
    ends.server.holds = True
    request = InferRequest(model_name="asker", inputs={})
    parents: Any = (SimpleNamespace(request=request), SimpleNamespace(request=request))
    ends.port.begin_batch(parents, np.empty(0, np.uint8))
    ends.client.begin_batch(np.empty(0, np.uint8))

    def ask() -> None:
        with pytest.raises(FarthingError, match="the server is gone"):
            ends.ask(inputs={}, member=1)

    asking = threading.Thread(target=ask)
    asking.start()
    while not ends.server.waiting:
        pass
    [subrequest] = ends.server.seen
    assert (subrequest.sender, list(subrequest.parents), subrequest.batch) == (ends.sender, [parents[1]], parents)
    ends.port.end_batch()
    assert ends.server.detached == [subrequest]
    ends.asking.shutdown(socket.SHUT_RDWR)
    asking.join(10)
    assert ends.server.is_over.wait(10)
    ends.server.loop.join(10)
    assert ends.server.withdrawn == [subrequest]


def nonsense(data: bytes, *fds: int, count: int = 1) -> bool:
    """Whether a process that says this is ended."""
    pair = Ends()
    try:
        messages.send(pair.asking, b"\xdc" + count.to_bytes(2, "big") + data, fds)
        pair.asking.shutdown(socket.SHUT_WR)
        assert pair.server.is_over.wait(10)
        return pair.nonsense.is_set()
    finally:
        pair.close()


def test_a_process_that_asks_what_cannot_be_is_ended() -> None:
    def asked(*inputs: Put, **fields: Any) -> bytes:
        return messages.encode(Ask(number=1, model="m", version="", inputs=inputs, **fields))

    assert not nonsense(asked())
    assert nonsense(asked(), count=2)
    assert nonsense(asked(freed=(-1,)))
    assert nonsense(asked(arena=1, has_new_arena=True))
    assert nonsense(asked(Put(3, Place("x", "FP32", (1,), 0, 4))))
    assert nonsense(asked(Put(-1, Place("x", "FP32", (1,), 0, 4))))
    assert nonsense(messages.encode(messages.Withdraw(1, 7)))
    arena = Arena.create()
    for place in (
        Place("x", "FP32", (1,), arena.size, 4),
        Place("x", "FP32", (1,), -4, 4),
        Place("x", "FP32", (1,), 2, 4),
        Place("x", "FP32", (2,), 0, 4),
        Place("x", "BYTES", (5,), 0, 4),
    ):
        assert nonsense(asked(Put(1, place), arena=1, has_new_arena=True), arena.fd)
    assert not nonsense(asked(Put(1, Place("x", "FP32", (1,), 4, 4)), arena=1, has_new_arena=True), arena.fd)
    arena.close()
    # Memory that the process could take away again would take the server along.
    fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 16)
    assert nonsense(asked(Put(1, Place("x", "FP32", (1,), 4, 4)), arena=1, has_new_arena=True), fd)
    os.close(fd)


@given(st.binary(min_size=1, max_size=200))
def test_bytes_that_are_no_message_end_a_process_and_nothing_else(data: bytes) -> None:
    nonsense(data, count=data[0] % 3)  # which fails if the port's thread does not end as it should


async def until(fact: Callable[[], bool]) -> None:
    for _ in range(4000):
        if fact():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def test_answers_are_drawn_one_by_one_and_an_error_need_not_be_the_last(ends: Ends) -> None:
    made = [response({"y": np.full(2000, i)}) for i in range(3)]
    ends.server.says = [StreamedResponse(answer, is_last=False) for answer in (made[0], Overloaded("later"), made[2])]
    ends.server.says.append(StreamedResponse(None, is_last=True))
    answers = Answers(ends.client, Question(model="other", inputs={"x": LARGE}, is_stream=True))
    first, error, last = answers.next(), answers.next(), answers.next()
    assert isinstance(first, Reply)
    assert isinstance(last, Reply)
    assert (first.outputs["y"][0], last.outputs["y"][0]) == (0, 2)
    assert isinstance(error, Overloaded)
    assert (answers.next(), answers.next()) == (None, None)
    assert len(ends.server.takes) == 3
    # Letting go of one that is not over withdraws it, answers that nobody drew and all.
    ends.server.says = [StreamedResponse(answer, is_last=False) for answer in made]
    other = Answers(ends.client, Question(model="other", inputs={"x": LARGE}, is_stream=True))
    assert isinstance(other.next(), Reply)
    del other
    eventually(lambda: len(ends.server.withdrawn) == 1)
    assert ends.ask(inputs={"x": LARGE})["x"].shape == LARGE.shape
    assert not ends.nonsense.is_set()


def test_a_process_that_draws_twice_at_once_is_ended(ends: Ends) -> None:
    ask = messages.Ask(number=1, model="other", version="", inputs=(), is_stream=True)
    more = messages.Next(1, ())
    for message in (ask, more):
        outbox = messages.Outbox()
        outbox.add(messages.encode(message))
        for data, fds in outbox.sends():
            messages.send(ends.asking, data, fds)
    assert ends.nonsense.wait(10)


@pytest.mark.parametrize("is_left_first", [True, False])
def test_what_is_asked_for_several_is_withdrawn_when_the_last_has_left(ends: Ends, is_left_first: bool) -> None:
    ends.server.holds = True
    ends.port.begin_streams({1: None, 2: None, 3: None})
    told: list[str] = []

    def ask() -> None:
        answered_here.set((1, 2))
        with pytest.raises(Cancelled, match="nobody waits any more"):
            ends.ask(inputs={"x": LARGE})
        with pytest.raises(Cancelled, match="nobody waits any more"):
            ends.ask(inputs={"x": LARGE}, stream=1)
        told.append("both")

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: len(ends.server.waiting) == 1)
    [(subrequest, _)] = ends.server.waiting
    assert subrequest.sender not in (None, ends.sender), "the requests wait, not the instance"
    ends.port.leave_stream(3)
    if is_left_first:
        ends.port.leave_stream(1)
        assert not ends.server.withdrawn
        ends.port.end_stream(2)
    else:
        ends.port.end_stream(2)
        assert not ends.server.withdrawn
        ends.port.leave_stream(1)
    thread.join(20)
    assert told == ["both"]
    assert ends.server.withdrawn == [subrequest]
    ends.port.end_stream(1)
    assert not ends.server.detached
    # Its memory is dropped, on both sides, and a new one is made: an engine may be reading it still.
    ends.server.holds = False
    assert (ends.ask(inputs={"x": LARGE})["x"] == LARGE).all()
    assert not ends.nonsense.is_set()
