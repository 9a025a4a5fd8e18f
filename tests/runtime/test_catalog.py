"""How models and versions come and go, with real files through real engines."""

import asyncio
import shutil
import threading
from unittest import mock

import pytest
from tests.runtime.shop import Shop, Stuck, ask, lines, reason, settle

from farthing.config.model import parse_model_config
from farthing.config.server import ModelControl
from farthing.types.errors import LoadFailed, NotFound, Unavailable

EXPLICIT, POLL = ModelControl.EXPLICIT, ModelControl.POLL


# -- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "served", "latest"),
    [
        ("", [3], 30),
        ("version_policy { latest { num_versions: 2 } }", [2, 3], 30),
        ("version_policy { all { } }", [1, 2, 3], 30),
        ("version_policy { specific { versions: [ 1, 2 ] } }", [1, 2], 20),
    ],
)
async def test_the_version_policy_says_which_serve(shop: Shop, policy: str, served: list[int], latest: int) -> None:
    for version in (3, 2, 1):
        shop.put("net", 10 * version, version)
    shop.configure("net", policy)
    async with shop.open() as runtime:
        assert runtime.catalog.ready_versions("net") == served
        assert await ask(runtime, "net") == latest
        for version in served:
            assert await ask(runtime, "net", str(version)) == 10 * version


async def test_versions_keep_their_own_statistics(shop: Shop) -> None:
    shop.put("net", 2, 2)
    shop.put("net", 1, 1)
    shop.configure("net", "version_policy { all { } }")
    async with shop.open() as runtime:
        await ask(runtime, "net", "1")
        await ask(runtime, "net", "2")
        await ask(runtime, "net", "2")
        counts = {one.version: one.inference_count for one in runtime.statistics("net")}
        assert counts == {"1": 1, "2": 2}
        [second] = runtime.statistics("net", "2")
        assert second.inference_stats.success.count == 2
        assert len(runtime.statistics()) == 2
        with pytest.raises(NotFound):
            runtime.statistics("ghost")


# -- loading, reloading, unloading -----------------------------------------------------------------------------------


async def test_control_is_refused_unless_it_is_explicit(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(POLL) as runtime:
        for control in (runtime.load, runtime.unload):
            with pytest.raises(Unavailable, match="explicit model load / unload is not allowed"):
                await control("net")


async def test_loading_again_replaces_the_model_and_keeps_its_statistics(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        assert await ask(runtime, "net") == 2
        shop.put("net", 3)
        await runtime.load("net")
        assert await ask(runtime, "net") == 3
        assert runtime.statistics("net")[0].inference_count == 2
        await settle(runtime)
        assert lines(runtime) == [("net", "1", "READY")]


async def test_a_reload_that_fails_leaves_the_old_one_serving(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        shop.put("net", 3).write_bytes(b"rubbish")
        with pytest.raises(LoadFailed, match=r"model\.onnx"):
            await runtime.load("net")
        assert await ask(runtime, "net") == 2
        assert runtime.not_ready() == ""
        shop.configure("net", "max_batch_size: {")
        with pytest.raises(LoadFailed, match=r"config\.pbtxt"):
            await runtime.load("net")
        assert await ask(runtime, "net") == 2


async def test_a_new_version_that_cannot_be_loaded_leaves_the_old_one_serving(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        shop.put("net", 5, 2).write_bytes(b"rubbish")
        shop.put("net", 2)
        with pytest.raises(LoadFailed):
            await runtime.load("net")
        assert await ask(runtime, "net") == 2
        assert runtime.not_ready() == "", "an update that fails must not take the server down"
        assert lines(runtime) == [("net", "1", "READY"), ("net", "2", "UNAVAILABLE")]
        with pytest.raises(Unavailable, match="version 2 is not at ready state"):
            await ask(runtime, "net", "2")


async def test_a_new_version_takes_over_and_one_whose_files_are_gone_leaves_the_index(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        shop.put("net", 5, 2)
        shop.put("net", 2)
        await runtime.load("net")
        assert await ask(runtime, "net") == 5
        await settle(runtime)
        assert lines(runtime) == [("net", "1", "UNAVAILABLE"), ("net", "2", "READY")]
        shutil.rmtree(shop.folder / "net" / "1")
        await runtime.load("net")
        await settle(runtime)
        assert lines(runtime) == [("net", "2", "READY")]


@pytest.mark.usefixtures("threads_only")
async def test_a_reload_answers_those_who_still_ride_in_the_old_model(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        with Stuck() as stuck:
            riding = [asyncio.ensure_future(ask(runtime, "net")) for _ in range(5)]
            await stuck.wait_until_entered()
            shop.put("net", 3)
            with (
                mock.patch("farthing.runtime.load.measure"),
                mock.patch("farthing.runtime.load._batch_rows_max") as rows,
            ):
                rows.return_value = 8
                await runtime.load("net")
            after = asyncio.ensure_future(ask(runtime, "net"))
            await asyncio.sleep(0)
            stuck.release.set()
            assert await asyncio.gather(*riding) == [2] * 5
            assert await after == 3
        await settle(runtime)


@pytest.mark.usefixtures("threads_only")
async def test_unloading_answers_those_under_way_and_takes_nobody_new(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",)) as runtime:
        with Stuck() as stuck:
            riding = [asyncio.ensure_future(ask(runtime, "net")) for _ in range(5)]
            await stuck.wait_until_entered()
            await runtime.unload("net")
            assert lines(runtime) == [("net", "1", "UNLOADING")]
            with pytest.raises(Unavailable, match="UNLOADING"):
                await ask(runtime, "net")
            stuck.release.set()
            assert await asyncio.gather(*riding) == [2] * 5
        await settle(runtime)
        assert lines(runtime) == [("net", "1", "UNAVAILABLE")]
        assert reason(runtime, "net") == "unloaded"
        assert runtime.not_ready() == "", "nobody wants it"
        with pytest.raises(NotFound, match="no available versions"):
            await ask(runtime, "net")
        await runtime.unload("net")
        await runtime.unload("never heard of it")
        await runtime.load("net")
        assert await ask(runtime, "net") == 2
        assert runtime.statistics("net")[0].inference_count == 6, "counters go on"


@pytest.mark.usefixtures("threads_only")
async def test_requests_inside_a_hung_model_are_answered_when_its_drain_runs_out_of_time(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT, load_models=("*",), exit_timeout_s=0.02) as runtime:
        with Stuck() as stuck, mock.patch("farthing.runtime.catalog.CLOSE_S_MAX", 0.01):
            riding = asyncio.ensure_future(ask(runtime, "net"))
            await stuck.wait_until_entered()
            await runtime.unload("net")
            with pytest.raises(Unavailable, match="was unloaded"):
                await riding
            await settle(runtime)


async def test_two_loads_of_one_model_at_once_take_turns(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT) as runtime:
        await asyncio.gather(*(runtime.load("net") for _ in range(4)))
        assert await ask(runtime, "net") == 2
        await asyncio.gather(runtime.load("net"), runtime.unload("net"), runtime.load("net"))
        await settle(runtime)
        assert lines(runtime) == [("net", "1", "READY")]


async def test_a_load_may_bring_its_own_configuration(shop: Shop) -> None:
    shop.put("net", 2)
    async with shop.open(EXPLICIT) as runtime:
        await runtime.load("net", parse_model_config({"max_batch_size": 3}))
        assert runtime.resolve("net").spec.batch_rows_max == 3
        await runtime.load("net")
        assert runtime.resolve("net").spec.batch_rows_max > 3


async def test_loading_what_is_not_there_is_told(shop: Shop) -> None:
    async with shop.open(EXPLICIT) as runtime:
        with pytest.raises(NotFound, match="no model `ghost` in the repository"):
            await runtime.load("ghost")
        assert lines(runtime) == []


async def test_a_server_that_stops_does_not_wait_for_a_load_that_hangs(shop: Shop) -> None:
    shop.put("net", 2)
    release, entered = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        entered.set()
        release.wait(20)
        raise LoadFailed("late")

    try:
        async with shop.open(EXPLICIT, exit_timeout_s=0.02) as runtime:
            with mock.patch("farthing.runtime.load_any.load_version", hang):
                loading = asyncio.ensure_future(runtime.load("net"))
                await asyncio.get_running_loop().run_in_executor(None, entered.wait, 20)
                await asyncio.wait_for(runtime.close(), 10)
    finally:
        release.set()
    with pytest.raises(LoadFailed, match="late"):
        await loading
