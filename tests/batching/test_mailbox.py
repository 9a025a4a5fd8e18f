"""What crosses from a generator's thread to the event loop."""

import asyncio
import threading

import pytest

from farthing.batching.mailbox import Mailbox


async def test_letters_arrive_in_order_from_any_thread() -> None:
    mailbox = Mailbox(asyncio.get_running_loop())
    received: list[int] = []
    finished = asyncio.Event()

    def write() -> None:
        for number in range(10_000):
            mailbox.post(received.append, number)
        mailbox.post(lambda _: finished.set(), None)

    threading.Thread(target=write).start()
    await asyncio.wait_for(finished.wait(), 10)
    assert received == list(range(10_000))


async def test_many_letters_wake_the_loop_once() -> None:
    loop = asyncio.get_running_loop()
    wakes: list[object] = []

    class Counting:
        def call_soon_threadsafe(self, call: object, *args: object) -> None:
            wakes.append(call)
            loop.call_soon_threadsafe(call, *args)  # type: ignore[arg-type]

    mailbox = Mailbox(Counting())  # type: ignore[arg-type]
    received: list[int] = []
    for number in range(64):  # as many as a step has to say, while the loop is busy elsewhere
        mailbox.post(received.append, number)
    assert (len(wakes), received) == (1, [])
    await asyncio.sleep(0)
    assert received == list(range(64))
    mailbox.post(received.append, 64)
    assert len(wakes) == 2


async def test_a_receiver_that_fails_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    mailbox = Mailbox(asyncio.get_running_loop())
    received: list[int] = []

    def fail(letter: int) -> None:
        raise ValueError(letter)

    mailbox.post(fail, 1)
    mailbox.post(received.append, 2)
    await asyncio.sleep(0)
    assert received == [2]
    assert "failed" in caplog.text


def test_a_loop_that_is_gone_is_nobodys_trouble() -> None:
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    mailbox.post(print, 1)
