"""The reference page says what the code does: its examples load, and it names every field."""

import re
from pathlib import Path

from farthing.config.model import ModelConfig, check_model_config
from farthing.repository.config_files import parse_pbtxt, parse_toml

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "model-config.md").read_text("utf-8")


def example(language: str) -> bytes:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1].encode()


def test_both_examples_load_and_say_the_same() -> None:
    config = parse_toml(example("toml"))
    check_model_config(config, "net")
    assert config == parse_pbtxt(example("pbtxt"))


def test_every_field_has_a_line() -> None:
    table = PAGE.split("## Fields")[1].split("## Where")[0]
    missing = [name for name in ModelConfig.__struct_encode_fields__ if f"`{name}" not in table]
    assert not missing
