"""Names: what is refused, what a file is called."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.repository.names import NAME_CHARACTERS_MAX, check_model_name, made_legal, name_from_file, version_number
from farthing.types.errors import InvalidInput


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "/", "a b", "\t", "a\nb", "a\0", "\u2028", "\ud800", "n" * 201],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_model_name(name)
    str(caught.value).encode()


@pytest.mark.parametrize("name", ["resnet50", "a.b_c-d", "1", "modèle", "a..b", "x" * NAME_CHARACTERS_MAX])
def test_names_as_triton_s_users_give_them_pass(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/resnet50.onnx", "resnet50"),
        ("/m/my model (final).onnx", "my-model-final"),
        ("/m/resnet/model.onnx", "resnet"),
        ("/m/resnet/3/model.onnx", "resnet"),
        ("/m/.onnx", "onnx"),
        ("/model.onnx", "model"),
        ("/m/模型.onnx", "model"),
        ("/m/net.v1.2.onnx", "net.v1.2"),
    ],
)
def test_a_file_gives_its_model_a_name(path: str, name: str) -> None:
    assert name_from_file(Path(path)) == name


@given(st.text())
def test_what_was_made_legal_is_legal(text: str) -> None:
    if made := made_legal(text):
        check_model_name(made)
        assert made.isascii()


@pytest.mark.parametrize(
    ("folder", "number"),
    [("1", 1), ("12", 12), ("0", 0), ("01", 0), ("a", 0), ("1.5", 0), ("²", 0), ("٣", 0), ("9" * 19, 0)],
)
def test_versions_are_folders_with_a_number_for_a_name(folder: str, number: int) -> None:
    assert version_number(folder) == number
