"""What a name may mean where several repositories have it, and what is found in them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models import identity, save

from farthing.repository import Repository, meant, model_key
from farthing.types.errors import InvalidInput, LoadFailed, NotFound

NAMESPACES = st.lists(st.sampled_from(["/a", "/b", "/c"]), unique=True)


@given(NAMESPACES, st.sampled_from(["", "/a", "/b"]), st.sampled_from([None, "", "/a", "/b"]))
def test_a_name_means_what_was_asked_for_else_the_neighbour_else_the_only_one(
    there: list[str], within: str, near: str | None
) -> None:
    found = meant(there, within=within, near=near)
    if within:
        assert found == [one for one in there if one == within]
    elif near in there:
        assert found == [near]
    else:
        assert found == there


def test_without_namespaces_a_name_says_it_all() -> None:
    assert meant([""], within="/a", near="/b") == meant([""], within="", near="") == [""]
    assert model_key("net", "") == "net"


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        save(folder / "net", identity())
    save(tmp_path / "b" / "only", identity())
    return folders


def test_models_of_one_name_are_a_problem_of_both_unless_there_are_namespaces(two: list[Path]) -> None:
    plain = Repository(two).scan()
    assert list(plain.models) == ["only"]
    assert "two models are called `net`" in plain.problems["net"].reason
    snapshot = Repository(two, has_namespaces=True).scan()
    assert not snapshot.problems
    assert sorted(snapshot.models) == sorted([f"{two[0]}/net", f"{two[1]}/net", f"{two[1]}/only"])
    assert {found.name for found in snapshot.models.values()} == {"net", "only"}


def test_what_is_named_twice_within_a_namespace_is_a_problem_still(two: list[Path]) -> None:
    snapshot = Repository([*two, two[0] / "net"], has_namespaces=True).scan()
    assert list(snapshot.problems) == [f"{two[0]}/net"]
    assert f"{two[1]}/net" in snapshot.models


def test_files_and_single_models_are_in_the_namespace_of_the_folder_around_them(two: list[Path]) -> None:
    file = two[0] / "net" / "1" / "model.onnx"
    snapshot = Repository([two[1] / "net", file], has_namespaces=True).scan()
    assert {found.namespace for found in snapshot.models.values()} == {str(two[1]), str(file.parent)}


def test_finding_by_name(two: list[Path]) -> None:
    repository = Repository(two, has_namespaces=True)
    a, b = map(str, two)
    assert repository.find("only").namespace == b
    with pytest.raises(InvalidInput, match="ambiguous") as refused:
        repository.find("net")
    assert a in str(refused.value)
    assert b in str(refused.value)
    assert [found.namespace for found in repository.find_all("net")] == [a, b]
    assert [found.namespace for found in repository.find_all("net", near=b)] == [b]
    assert [found.namespace for found in repository.find_all("net", within=a, near=b)] == [a]
    with pytest.raises(NotFound, match="looked in /c"):
        repository.find_all("net", within="/c")


def test_a_neighbour_s_broken_namesake_is_not_looked_at(two: list[Path]) -> None:
    (two[0] / "net" / "config.pbtxt").write_text("max_batch_size: {")
    repository = Repository(two, has_namespaces=True)
    assert [found.namespace for found in repository.find_all("net", near=str(two[1]))] == [str(two[1])]
    with pytest.raises(LoadFailed):
        repository.find_all("net")
