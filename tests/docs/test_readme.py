"""What the README shows, done."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving import serve_process

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def shell_lines() -> list[str]:
    [block] = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line.split("  #")[0].strip() for line in block.splitlines()]


@pytest.mark.samples
def test_serving_a_model_works_as_shown(tmp_path: Path) -> None:
    install, serve, *calls = shell_lines()
    assert install == "pip install ."
    assert serve.startswith("farthing serve ")
    with serve_process(tmp_path, *serve.split()[2:]) as live:
        host, port = live.address
        for call in calls:
            asked = call.replace("127.0.0.1:8000", f"{host}:{port}")
            done = subprocess.run(
                [*asked.split(), "--fail-with-body"], capture_output=True, text=True, timeout=30, check=False
            )
            assert done.returncode == 0, done.stdout


@pytest.mark.samples
def test_talking_to_a_language_model_works_as_shown(tmp_path: Path) -> None:
    pytest.importorskip("openai", reason="the README shows OpenAI's client: pip install openai")
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    [sample] = re.findall(r"`farthing serve (sample:\S+)`, then", README)
    with serve_process(tmp_path, sample) as live:
        host, port = live.address
        shown = program.replace("127.0.0.1:8000", f"{host}:{port}").replace("stream=True", "stream=True, temperature=0")
        done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "Tokyo" in done.stdout


@pytest.mark.samples
def test_the_line_that_serve_prints_works_when_pasted(tmp_path: Path) -> None:
    samples = {"wdbc-gbdt": '"outputs"', "effnet-lite0": '"outputs"', "smollm2-135m": "data: [DONE]"}
    for sample, expected in samples.items():
        folder = tmp_path / sample
        folder.mkdir()
        with serve_process(folder, f"sample:{sample}") as live:
            assert live.log is not None
            words = live.log.read_text().splitlines()
            line = words[words.index("try it:") + 1].strip()
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            assert expected in done.stdout, done.stdout


def test_the_targets_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z]+) ", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
