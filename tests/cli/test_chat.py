"""Talking to a model: once through a pipe, and in turns on a terminal, with a real server behind."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.language import paced, talking
from tests.serving import Live, eventually

from farthing.client.chat import ChatClient
from farthing.types.errors import EngineFailed, InvalidInput, NotFound, Unavailable

START = "from farthing.cli.main import main; main()"


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with talking(tmp_path_factory.mktemp("models")) as live:
        yield live


def run(*arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", START, "chat", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)


class Terminal:
    """`farthing chat` on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.seen = ""
        self._pid, self._fd = pty.fork()
        if not self._pid:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-c", START, "chat", *arguments])

    def until(self, text: str) -> str:
        """Everything shown up to `text`."""
        deadline = time.monotonic() + 20
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                self.seen += os.read(self._fd, 1 << 16).decode(errors="replace")
        shown, _, self.seen = self.seen.partition(text)
        return shown

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        """Its exit status."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                os.close(self._fd)
                return os.waitstatus_to_exitcode(status)
            if select.select([self._fd], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    os.read(self._fd, 1 << 16)
        os.kill(self._pid, signal.SIGKILL)
        raise AssertionError("it did not end")


def whole(live: Live, text: str) -> str:
    """The greedy answer, put together."""
    pieces = ChatClient(live.url).ask([{"role": "user", "content": text}], temperature=0, max_tokens=8)
    return "".join(piece.text for piece in pieces)


def test_a_question_on_the_command_line_or_in_a_pipe_is_answered_on_stdout(talk: Live) -> None:
    said = run(talk.url, "--temperature", "0", "--max-tokens", "8", "hello", "there")
    assert (said.returncode, said.stdout, said.stderr) == (0, whole(talk, "hello there") + "\n", "")
    piped = run(talk.url, "--temperature", "0", "--max-tokens", "8", given="hello there\n")
    assert piped.stdout == said.stdout


def test_mistakes_are_told_in_two_lines(talk: Live) -> None:
    for arguments, words in (
        ((talk.url, "--model", "none", "hi"), "no model `none`"),
        (("http://127.0.0.1:1", "hi"), "cannot be reached"),
        (("nothing.gguf", "hi"), "no such file"),
        ((talk.url,), "no question"),
    ):
        failed = run(*arguments)
        assert failed.returncode == 1
        assert words in failed.stderr
        assert "Traceback" not in failed.stderr


def test_turns_on_a_terminal(tmp_path: Path) -> None:
    with paced(tmp_path) as (live, runner):
        terminal = Terminal(live.url, "--temperature", "0", "--max-tokens", "30")
        terminal.until("> ")
        terminal.type("hello\r")
        assert "tokens/s" in terminal.until("> ").replace("\r", "")

        runner.step_s = 0.05  # an answer that takes its time is stopped, and the server hears of it
        terminal.type("again\r")
        eventually(lambda: live.metric("vllm:num_requests_running") == 1)
        time.sleep(0.2)
        terminal.type("\x03")
        assert "(stopped)" in terminal.until("> ")
        eventually(lambda: live.metric("vllm:num_requests_running") == 0)
        runner.step_s = 0.0

        terminal.type("/reset\r")
        terminal.until("forgotten")
        terminal.until("> ")
        terminal.type("/help\r")
        assert "/system" in terminal.until("> ")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_conversation_longer_than_the_context_loses_its_beginning(talk: Live) -> None:
    terminal = Terminal(talk.url, "--temperature", "0", "--max-tokens", "8")
    terminal.until("> ")
    for _ in range(3):
        terminal.type("x" * 200 + "\r")
        shown = terminal.until("> ")
        while "tokens/s" not in shown:  # the echo of what was typed
            shown += terminal.until("> ")
    assert "left out" in shown
    terminal.type("\x04")
    assert terminal.end() == 0


def test_the_client_raises_what_the_server_says(talk: Live, tmp_path: Path) -> None:
    client = ChatClient(f"{talk.url}/v1")
    assert client.models() == ["tiny"]
    with pytest.raises(InvalidInput, match="temperature"):
        list(client.ask([{"role": "user", "content": "hi"}], temperature=9))
    with pytest.raises(NotFound):
        list(client.ask([{"role": "user", "content": "hi"}], model="none"))
    with pytest.raises(Unavailable):
        ChatClient("http://127.0.0.1:1").models()
    with pytest.raises(InvalidInput):
        ChatClient("ftp://there")
    with paced(tmp_path) as (live, runner):
        runner.fails_after = 3
        with pytest.raises(EngineFailed):
            list(ChatClient(live.url).ask([{"role": "user", "content": "hi"}]))


@pytest.mark.samples
def test_a_model_is_served_for_as_long_as_the_chat_lasts() -> None:
    said = run("sample:smollm2-135m", "--temperature", "0", "What is the capital of Japan?")
    assert said.returncode == 0
    assert "Tokyo" in said.stdout
