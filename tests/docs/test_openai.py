"""What docs/reference/openai.md shows, done."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving import serve_process

from farthing.protocols.openai.chat import ChatBody, parse_chat
from farthing.protocols.openai.completions import CompletionBody

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "openai.md").read_text()
ADDRESS = "127.0.0.1:8000"


def shown(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.samples
def test_the_examples_work_as_they_stand(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    (program,), (call,) = shown("python"), shown("sh")
    with serve_process(tmp_path, "sample:smollm2-135m", "--llm-kv-memory", "200MB") as live:
        said = subprocess.run(
            [
                sys.executable,
                "-c",
                program.replace(ADDRESS, live.netloc).replace("stream=True", "stream=True, temperature=0"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert "Japan" in said.stdout
        answer = subprocess.run(
            ["bash", "-c", call.replace(ADDRESS, live.netloc)], capture_output=True, timeout=60, check=True
        )
        assert json.loads(answer.stdout)["text_output"]


def test_the_bodies_shown_are_understood() -> None:
    bodies = [body for body in map(json.loads, shown("json")) if "error" not in body]
    asked = [
        parse_chat(json.dumps({"messages": [{"role": "user", "content": "hi"}], **body}).encode()) for body in bodies
    ]
    assert [one.form is not None for one in asked] == [True, False]
    assert [one.tool_use is not None for one in asked] == [False, True]


def test_every_field_is_written_down() -> None:
    fields = {*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__}
    listed = PAGE.replace("`guided_*`", "`guided_json` `guided_regex` `guided_choice` `guided_grammar`")
    quiet = {"model", "documents", "function_call", "logits_processors", "add_special_tokens", "audio"}
    assert sorted(field for field in fields - quiet if f"`{field}`" not in listed) == []
