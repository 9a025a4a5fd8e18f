"""Bad days of a Python model's process, with real processes and real signals."""

import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farthing.engines.contract import Batch, Member
from farthing.engines.python.channel import MESSAGE_BYTES_MAX
from farthing.engines.python.process import how_it_ended
from farthing.types.errors import EngineFailed, InvalidInput, LoadFailed, Unavailable

COMMANDED = """
    import ctypes, os, signal, subprocess, sys, time
    from farthing import Tensor

    class M:
        inputs = [Tensor("do", "BYTES", [1])]
        outputs = [Tensor("pid", "INT64", [1])]

        def infer(self, inputs):
            exec(inputs["do"][0].decode(), globals())
            return {"pid": [os.getpid()]}
"""


def do(command: str) -> dict[str, Any]:
    return {"do": np.array([command.encode()], object)}


def eventually(fact: Callable[[], Any], within_s: float = 20.0) -> None:
    """Waits for something another process does; fails if it never comes."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("print('last words'); os.kill(os.getpid(), signal.SIGKILL)", r"was killed by signal 9 \(SIGKILL; the kernel"),
        ("print('last words'); ctypes.string_at(0)", r"was killed by signal 11 \(SIGSEGV\)"),
        ("print('last words'); sys.exit(4)", "exited with status 4"),
        ("print('last words'); os._exit(5)", "exited with status 5"),
        ("print('last words'); os.closerange(3, 100); time.sleep(600)", "was killed by the server"),
    ],
)
def test_a_crash_is_answered_and_mended(load_model: Any, run_alone: Any, command: str, ending: str) -> None:
    model = load_model(COMMANDED)
    first = run_alone(model, **do("pass"))["pid"][0]
    with pytest.raises(EngineFailed, match=f"model `mine`: its process {ending}.* while it ran this batch") as caught:
        run_alone(model, **do(command))
    assert "last words" in caught.value.hint
    eventually(lambda: model.health() == "")
    assert run_alone(model, **do("pass"))["pid"][0] != first


def test_kill_9_from_outside_in_mid_request(load_model: Any, run_alone: Any) -> None:
    model = load_model(COMMANDED, instances=2)
    failures: list[Exception] = []

    def request() -> None:
        try:
            run_alone(model, 0, **do("print('busy'); time.sleep(600)"))
        except EngineFailed as failure:
            failures.append(failure)

    caller = threading.Thread(target=request)
    caller.start()
    victim = model.pids[0]
    time.sleep(0.05)  # so that it is in the model's code; the answer is the same if it is not yet
    os.kill(victim, signal.SIGKILL)
    caller.join(10)
    assert not caller.is_alive()
    assert "was killed by signal 9" in str(failures[0])
    assert run_alone(model, 1, **do("pass"))["pid"][0] == model.pids[1]
    eventually(lambda: model.health() == "")
    assert run_alone(model, 0, **do("pass"))["pid"][0] not in (victim, None)


def test_while_it_is_down_requests_are_refused_at_once(load_model: Any, run_alone: Any) -> None:
    model = load_model(COMMANDED, parameters={"restart_delay_seconds": "30"})
    with pytest.raises(EngineFailed):
        run_alone(model, **do("os._exit(1)"))
    eventually(lambda: "next start in" in model.health())
    started = time.monotonic()
    with pytest.raises(Unavailable, match="its process exited with status 1 and is being started again") as caught:
        run_alone(model, **do("pass"))
    assert time.monotonic() - started < 1.0
    assert caught.value.retry_after_s is not None
    assert 25 < caught.value.retry_after_s <= 60
    assert "process 0 of model `mine` has died once, last: exited with status 1; next start in" in model.health()


def test_a_process_found_dead_between_requests_is_replaced(load_model: Any, run_alone: Any) -> None:
    model = load_model(COMMANDED)
    victim = model.pids[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: model.pids[0] not in (victim, None))
    assert run_alone(model, **do("pass"))["pid"][0] == model.pids[0]


def test_a_model_that_can_no_longer_load_says_so_and_comes_back_when_mended(
    load_model: Any, run_alone: Any, tmp_path: Path
) -> None:
    model = load_model(COMMANDED)
    file = tmp_path / "mine" / "1" / "model.py"
    good = file.read_text()
    file.write_text("raise RuntimeError('weights are gone')")
    os.kill(model.pids[0], signal.SIGKILL)
    eventually(lambda: "times in a row" in model.health())
    assert "weights are gone" in model.health()
    with pytest.raises(Unavailable):
        run_alone(model, **do("pass"))
    file.write_text(good)
    eventually(lambda: model.health() == "")
    assert run_alone(model, **do("pass"))["pid"][0] == model.pids[0]


def test_a_model_that_hangs_is_stopped_after_its_time(load_model: Any, run_alone: Any) -> None:
    model = load_model(COMMANDED, parameters={"execution_timeout_seconds": "0.2"})
    with pytest.raises(EngineFailed, match=r"model `mine` did not answer within 0\.2 s"):
        run_alone(model, **do("signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); time.sleep(600)"))
    with pytest.raises(Unavailable, match=r"its process (was killed by the server|is going)"):
        run_alone(model, **do("pass"))
    eventually(lambda: model.health() == "")
    assert run_alone(model, **do("pass"))["pid"][0] == model.pids[0]


def test_a_load_that_hangs_is_stopped_after_its_time(load_model: Any) -> None:
    with pytest.raises(LoadFailed, match=r"not loaded within 0\.3 s"):
        load_model("import time; time.sleep(600)", parameters={"load_timeout_seconds": "0.3"})


def test_what_a_dead_model_started_goes_with_it(load_model: Any, run_alone: Any, tmp_path: Path) -> None:
    """A grandchild holds the log's pipe open, and must not hold up the answer."""
    model = load_model(COMMANDED)
    note = tmp_path / "pid"
    with pytest.raises(EngineFailed, match="exited with status 1"):
        run_alone(
            model, **do(f"open({str(note)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid)); os._exit(1)")
        )
    eventually(lambda: is_gone(int(note.read_text())))


def test_garbage_on_the_socket_costs_the_liar_its_process_only(load_model: Any, run_alone: Any) -> None:
    model = load_model(COMMANDED)
    garbage = "[os.write(fd, b'\\x05\\0\\0\\0hello') for fd in map(int, os.listdir('/proc/self/fd')) if os.path.exists(f'/proc/self/fd/{fd}')"
    with pytest.raises(EngineFailed, match=r"model `mine`: its process .* after it answered nonsense"):
        run_alone(model, **do(f"{garbage} and 'socket' in os.readlink(f'/proc/self/fd/{{fd}}')]"))
    eventually(lambda: model.health() == "")
    assert run_alone(model, **do("pass"))["pid"][0] == model.pids[0]


def test_close_unloads_first(load_model: Any, tmp_path: Path) -> None:
    note = tmp_path / "note"
    model = load_model(COMMANDED + f"\n        def unload(self):\n            open({str(note)!r}, 'w').write('bye')\n")
    (pid,) = model.pids
    model.close()
    assert note.read_text() == "bye"
    assert is_gone(pid)


@pytest.mark.parametrize(
    "stubborn", ["time.sleep(600)", "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
)
def test_close_ends_a_model_that_will_not_go(load_model: Any, stubborn: str) -> None:
    model = load_model(
        COMMANDED + f"\n        def unload(self):\n            {stubborn}\n",
        parameters={"unload_timeout_seconds": "0.1"},
    )
    (pid,) = model.pids
    started = time.monotonic()
    model.close()
    assert is_gone(pid)
    assert time.monotonic() - started < 10


def test_sigterm_to_everybody_leaves_the_worker_to_the_server(load_model: Any, run_alone: Any) -> None:
    model = load_model(COMMANDED)
    (pid,) = model.pids
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGTERM)
    assert run_alone(model, **do("time.sleep(0.05)"))["pid"][0] == pid


def test_workers_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    """Also one that is in the middle of the user's code."""
    file = tmp_path / "model.py"
    file.write_text(textwrap.dedent(COMMANDED))
    server = textwrap.dedent(f"""
        from pathlib import Path
        import numpy as np
        from farthing.engines.contract import Batch, Member, ModelSource
        from farthing.engines.python import Python
        model = Python().load(ModelSource(name="m", version=1, path=Path({str(file)!r}), folder=Path({str(tmp_path)!r})))
        print(model.pids[0], flush=True)
        command = np.array([b"time.sleep(600)"], object)
        model.execute(Batch({{"do": command}}, ("pid",), (Member(rows=1),)), 0)
    """)
    process = subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: is_gone(worker))


def test_nothing_is_left_behind(load_model: Any, run_alone: Any) -> None:
    """Descriptors and threads are given back, however often the process died."""

    def held() -> tuple[int, int, set[Path]]:
        return (
            sum(1 for _ in Path("/proc/self/fd").iterdir()),
            threading.active_count(),
            {path for path in Path("/dev/shm").iterdir() if "farthing" in path.name},
        )

    before = held()
    model = load_model(COMMANDED)
    for _ in range(3):
        with pytest.raises(EngineFailed):
            run_alone(model, **do("os.kill(os.getpid(), 9)"))
        eventually(lambda: model.health() == "")
    model.close()
    eventually(lambda: held() == before)


def test_a_model_that_prints_a_lot_is_neither_blocked_nor_lost(
    load_model: Any, run_alone: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = load_model(COMMANDED)
        run_alone(model, **do("import logging; logging.warning('mind this')"))
        run_alone(model, **do("for i in range(20_000): print('chatter', i)"))
        run_alone(model, **do("sys.stderr.write('x' * 10_000_000)"))
        model.close()
    assert "mine: mind this" in caplog.messages
    assert next(r.levelno for r in caplog.records if r.message == "mine: mind this") == logging.WARNING
    assert "mine: chatter 0" in caplog.messages
    assert len(caplog.messages) < 5_000
    assert max(map(len, caplog.messages)) < 5_000


def test_an_ending_is_told_in_words() -> None:
    assert how_it_ended(0) == "exited with status 0"
    assert how_it_ended(-6) == "was killed by signal 6 (SIGABRT)"
    assert how_it_ended(-40) == "was killed by signal 40 (unknown)"


def test_a_tensor_that_cannot_be_is_not_read(load_model: Any, run_alone: Any) -> None:
    model = load_model(COMMANDED)
    lie = "from farthing.engines.python.channel import Place; worker = sys.modules['__main__']; "
    lie += "worker.write_tensors = lambda arena, tensors: (Place('pid', 'INT64', (1,), 1 << 40, 8),)"
    with pytest.raises(EngineFailed, match="answered with a tensor that cannot be: `pid` ends at byte"):
        run_alone(model, **do(lie))


def test_a_process_that_dies_just_after_its_answer_costs_no_answer(load_model: Any, run_alone: Any) -> None:
    """Nor any error but the two that say what happened, wherever the death falls."""
    model = load_model(COMMANDED)
    for delay_s in (0.0, 0.0001, 0.0002, 0.0005, 0.001):
        eventually(lambda: model.health() == "")
        pid = model.pids[0]
        assert run_alone(model, **do("pass"))["pid"][0] == pid
        command = f"import threading; threading.Timer({delay_s} + 0.005, os._exit, (1,)).start()"
        failure = None
        while failure is None:
            try:
                assert run_alone(model, **do(command))["pid"][0] == pid
            except (EngineFailed, Unavailable) as problem:
                failure = problem
            command = "pass"
        assert "exited with status 1" in failure.message


def test_descriptors_above_1023_are_as_good_as_any(load_model: Any, run_alone: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this machine allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        model = load_model(COMMANDED)
        assert run_alone(model, **do("pass"))["pid"][0] == model.pids[0]
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_parameter_that_cannot_travel_is_the_requests_mistake(load_model: Any, run_alone: Any) -> None:
    model = load_model(COMMANDED)
    for bad in (1 << 80, "\ud800", "x" * (MESSAGE_BYTES_MAX + 1)):
        with pytest.raises(InvalidInput, match="model `mine`: "):
            model.execute(Batch(do("pass"), ("pid",), (Member(rows=1, parameters={"p": bad}),)), 0)
    assert run_alone(model, **do("pass"))["pid"][0] == model.pids[0]
