"""Finding models: layouts, names, links, broken models beside good ones."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farthing.config.model import ModelConfig, parse_model_config
from farthing.repository import FoundVersion, Repository, Snapshot, read_labels
from farthing.types.errors import FarthingError, InvalidInput, LoadFailed, NotFound


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def scan(*paths: Path) -> Snapshot:
    return Repository(paths).scan()


def reason(snapshot: Snapshot, name: str) -> str:
    assert name not in snapshot.models
    return snapshot.problems[name].reason


def test_triton_s_layout_is_found_with_any_configuration_or_none(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1" / "model.onnx")
    put(tmp_path / "b" / "1" / "model.onnx")
    put(tmp_path / "b" / "12" / "model.onnx")
    put(tmp_path / "b" / "config.pbtxt", 'name: "b" max_batch_size: 4')
    put(tmp_path / "c" / "1" / "model.py")
    put(tmp_path / "c" / "model.toml", "max_batch_size = 0")
    put(tmp_path / ".git" / "1" / "model.onnx")
    put(tmp_path / "README.md")
    found = scan(tmp_path)
    assert not found.problems
    assert sorted(found.models) == ["a", "b", "c"]
    assert found.models["a"].versions == (FoundVersion(1, tmp_path / "a/1/model.onnx"),)
    assert not found.models["a"].has_config
    assert [version.number for version in found.models["b"].versions] == [1, 12]
    assert found.models["b"].config == ModelConfig(name="b", max_batch_size=4)
    assert found.models["c"].config == ModelConfig(name="c", max_batch_size=0)
    assert found.models["c"].folder == tmp_path / "c"


def test_files_and_single_folders_are_models_too(tmp_path: Path) -> None:
    net = put(tmp_path / "net v2.onnx")
    single = put(tmp_path / "single" / "3" / "model.onnx").parent.parent
    flat = put(tmp_path / "flat" / "model.py").parent
    named = put(tmp_path / "export" / "1" / "model.onnx").parent.parent
    put(named / "model.toml", 'name = "resnet"')
    lone = put(tmp_path / "lone" / "weights.onnx").parent
    repository = put(tmp_path / "repository" / "inner" / "1" / "model.onnx").parent.parent.parent
    found = scan(net, single, flat, named, lone, repository)
    assert not found.problems
    assert {name: model.versions for name, model in found.models.items()} == {
        "net-v2": (FoundVersion(1, net),),
        "single": (FoundVersion(3, single / "3/model.onnx"),),
        "flat": (FoundVersion(1, flat / "model.py"),),
        "resnet": (FoundVersion(1, named / "1/model.onnx"),),
        "lone": (FoundVersion(1, lone / "weights.onnx"),),
        "inner": (FoundVersion(1, repository / "inner/1/model.onnx"),),
    }


def test_the_model_file_is_the_one_said_the_usual_one_or_the_only_one(tmp_path: Path) -> None:
    put(tmp_path / "said" / "1" / "b.onnx")
    put(tmp_path / "said" / "1" / "model.onnx")
    put(tmp_path / "said" / "model.toml", 'default_model_filename = "b.onnx"')
    put(tmp_path / "only" / "1" / "weights.onnx")
    put(tmp_path / "only" / "1" / "weights.onnx.data")
    put(tmp_path / "code" / "1" / "model.py")
    put(tmp_path / "code" / "1" / "model.onnx")
    put(tmp_path / "code" / "config.pbtxt", 'backend: "python"')
    put(tmp_path / "other" / "1" / "net.py")
    put(tmp_path / "other" / "1" / "weights.onnx")
    put(tmp_path / "other" / "config.pbtxt", 'backend: "python"')
    put(tmp_path / "ir" / "1" / "model.xml")
    put(tmp_path / "ir" / "1" / "model.bin")
    put(tmp_path / "odd" / "1" / "weights.xyz")
    found = scan(tmp_path)
    assert not found.problems
    assert {name: model.versions[0].path.name for name, model in found.models.items()} == {
        "said": "b.onnx",
        "only": "weights.onnx",
        "code": "model.py",
        "other": "net.py",
        "ir": "model.xml",
        "odd": "weights.xyz",
    }


def test_an_ensemble_needs_no_file(tmp_path: Path) -> None:
    put(
        tmp_path / "both" / "model.toml",
        """
        platform = "ensemble"
        input = [{ name = "x", data_type = "FP32", dims = [1] }]
        ensemble_scheduling.step = [{ model_name = "a", input_map = { x = "x" }, output_map = { y = "y" } }]
        """,
    )
    found = Repository([tmp_path]).scan()
    assert found.models["both"].versions == (FoundVersion(1, tmp_path / "both"),)


def test_a_broken_model_says_why_and_stops_no_other(tmp_path: Path) -> None:
    put(tmp_path / "good" / "1" / "model.onnx")
    put(tmp_path / "typo" / "1" / "model.onnx")
    put(tmp_path / "typo" / "config.pbtxt", "max_batch: 3")
    put(tmp_path / "misnamed" / "1" / "model.onnx")
    put(tmp_path / "misnamed" / "config.pbtxt", 'name: "other"')
    put(tmp_path / "absent" / "1" / "model.onnx")
    put(tmp_path / "absent" / "model.toml", "version_policy = [2]")
    put(tmp_path / "hollow" / "1" / "model.onnx")
    (tmp_path / "hollow" / "2").mkdir()
    (tmp_path / "empty").mkdir()
    put(tmp_path / "torn" / "1" / "model.onnx")
    put(tmp_path / "torn" / "1" / "model.py")
    put(tmp_path / "lost" / "1" / "model.onnx")
    put(tmp_path / "lost" / "model.toml", 'default_model_filename = "../../good/1/model.onnx"')
    put(tmp_path / "with space" / "1" / "model.onnx")
    found = scan(tmp_path)
    assert list(found.models) == ["good"]
    assert "config.pbtxt:1:1: " in reason(found, "typo")
    assert "`max_batch`" in reason(found, "typo") or '"max_batch"' in reason(found, "typo")
    assert "calls it `other`" in reason(found, "misnamed")
    assert "picks none of the versions found: 1" in reason(found, "absent")
    assert f"{tmp_path}/hollow/2 holds no model file" in reason(found, "hollow")
    assert "empty/1/model.onnx" in reason(found, "empty")
    assert "model.onnx, model.py could each be the model" in reason(found, "torn")
    assert "holds no `../../good/1/model.onnx`" in reason(found, "lost")
    assert "has white space" in reason(found, "with space")


def test_an_unwanted_version_may_be_hollow(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    put(tmp_path / "m" / "2" / "model.onnx")
    assert [version.number for version in scan(tmp_path).models["m"].versions] == [2]


def test_two_models_of_one_name_are_told_together(tmp_path: Path) -> None:
    one = put(tmp_path / "one" / "net" / "1" / "model.onnx").parents[2]
    two = put(tmp_path / "two" / "net.onnx")
    put(tmp_path / "one" / "fine" / "1" / "model.onnx")
    found = scan(one, two)
    assert list(found.models) == ["fine"]
    assert f"{one / 'net'} and {two}" in reason(found, "net")
    put(one / "net" / "config.pbtxt", "nonsense")
    assert f"{one / 'net'} and {two}" in reason(scan(one, two), "net")
    assert scan(two, two).models


def test_what_is_not_there_is_a_problem_named_by_its_path(tmp_path: Path) -> None:
    put(tmp_path / "net.onnx")
    found = scan(tmp_path / "nowhere", tmp_path / "net.onnx")
    assert list(found.models) == ["net"]
    assert found.unread == (tmp_path / "nowhere",)
    assert "No such file" in reason(found, str(tmp_path / "nowhere"))


def test_links_stay_in_the_repository(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.onnx")
    root = tmp_path / "root"
    put(root / "shared" / "1" / "model.onnx")
    (root / "alias").symlink_to(root / "shared")
    (root / "file" / "1").mkdir(parents=True)
    (root / "file" / "1" / "model.onnx").symlink_to(secret)
    (root / "folder").symlink_to(tmp_path)
    (root / "config" / "1").mkdir(parents=True)
    put(root / "config" / "1" / "model.onnx")
    (root / "config" / "config.pbtxt").symlink_to(secret)
    (root / "circle" / "1").mkdir(parents=True)
    (root / "circle" / "1" / "again").symlink_to(root / "circle")
    (root / "loop" / "1").mkdir(parents=True)
    (root / "loop" / "1" / "model.onnx").symlink_to(root / "loop" / "1" / "model.onnx")
    (root / "dead" / "1").mkdir(parents=True)
    (root / "dead" / "1" / "model.onnx").symlink_to(root / "nothing")
    found = scan(root)
    assert sorted(found.models) == ["alias", "shared"]
    for name in ("file", "folder", "config"):
        assert "a link that leads out of the repository" in reason(found, name)
    assert "folders deep" in reason(found, "circle")
    assert "model.onnx" in reason(found, "loop")
    assert "No such file" in reason(found, "dead")


def test_mounted_configuration_maps_and_blob_caches_are_served(tmp_path: Path) -> None:
    """Kubernetes links `model.onnx -> ..data/model.onnx`, hub caches link a name to a blob with a digest for one."""
    put(tmp_path / "root" / "m" / "..data" / "model.onnx")
    (tmp_path / "root" / "m" / "model.onnx").symlink_to("..data/model.onnx")
    blob = put(tmp_path / "blobs" / "0a1b2c")
    (tmp_path / "net.onnx").symlink_to(blob)
    found = scan(tmp_path / "root", tmp_path / "net.onnx")
    assert sorted(found.models) == ["m", "net"]
    assert found.models["net"].versions[0].path.suffix == ".onnx"


def test_pipes_and_too_many_files_do_not_hang_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    os.mkfifo(tmp_path / "m" / "config.pbtxt")
    assert "m" in scan(tmp_path).models
    monkeypatch.setattr("farthing.repository.listing.FILES_MAX", 3)
    for number in range(5):
        put(tmp_path / "big" / "1" / f"{number}.bin")
    assert "more than 3 files" in reason(scan(tmp_path), "big")


def test_a_name_that_is_not_utf8_is_still_told(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff")).mkdir()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    (problem,) = scan(tmp_path).problems.values()
    assert problem.name == "\\udcff"
    (problem.name + problem.reason).encode()


def test_a_scan_changes_nothing_and_equal_files_give_equal_scans(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    assert scan(tmp_path) == scan(tmp_path)


def test_the_fingerprint_follows_the_files_and_not_their_use(tmp_path: Path) -> None:
    model = put(tmp_path / "m" / "1" / "model.onnx")
    before = scan(tmp_path).models["m"].fingerprint
    put(tmp_path / "m" / "1" / "__pycache__" / "model.pyc")
    put(tmp_path / "m" / ".cache")
    assert scan(tmp_path).models["m"].fingerprint == before
    seen = {before}
    os.utime(model, ns=(1, 1))
    seen.add(scan(tmp_path).models["m"].fingerprint)
    put(tmp_path / "m" / "1" / "labels.txt")
    seen.add(scan(tmp_path).models["m"].fingerprint)
    put(tmp_path / "m" / "1" / "new").replace(model)
    seen.add(scan(tmp_path).models["m"].fingerprint)
    assert len(seen) == 4


def test_a_single_file_s_fingerprint_counts_its_weights(tmp_path: Path) -> None:
    net = put(tmp_path / "net.xml")
    before = scan(net).models["net"].fingerprint
    put(tmp_path / "net.bin")
    put(tmp_path / "unrelated.bin")
    after = scan(net).models["net"].fingerprint
    assert after != before
    put(tmp_path / "other.bin")
    assert scan(net).models["net"].fingerprint == after


def test_find_takes_a_configuration_in_place_of_the_file(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "2" / "model.onnx")
    put(tmp_path / "m" / "config.pbtxt", "this is broken")
    repository = Repository([tmp_path])
    with pytest.raises(LoadFailed, match=r"config\.pbtxt:1:"):
        repository.find("m")
    found = repository.find("m", config=parse_model_config({"version_policy": [1], "max_batch_size": "3"}))
    assert found.config.max_batch_size == 3
    assert found.has_config
    with pytest.raises(NotFound, match="no model `n`"):
        repository.find("n")
    with pytest.raises(InvalidInput):
        repository.find("../m")


def test_labels_come_from_the_model_s_own_folder(tmp_path: Path) -> None:
    put(tmp_path / "secret.txt", "key")
    put(tmp_path / "m" / "1" / "model.onnx")
    put(tmp_path / "m" / "labels.txt", "cat\r\ndog\n\nfish\n")
    put(
        tmp_path / "m" / "model.toml",
        'output = [{ name = "y", data_type = "FP32", dims = [4], label_filename = "labels.txt" }]',
    )
    found = scan(tmp_path).models["m"]
    assert read_labels(found) == {"y": ("cat", "dog", "", "fish")}
    (tmp_path / "m" / "labels.txt").unlink()
    with pytest.raises(LoadFailed, match="no such file"):
        read_labels(found)
    (tmp_path / "m" / "labels.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(LoadFailed, match="outside the model's folder"):
        read_labels(found)
    (tmp_path / "m" / "labels.txt").unlink()
    (tmp_path / "m" / "labels.txt").write_bytes(b"\xff")
    with pytest.raises(LoadFailed, match="not UTF-8"):
        read_labels(found)


@settings(max_examples=60, deadline=None)
@given(name=st.text(min_size=1, max_size=30))
def test_no_asked_for_name_breaks_find(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "hostile"
    put(root / "m" / "1" / "model.onnx")
    try:
        assert Repository([root]).find(name).name == name == "m"
    except FarthingError as error:
        str(error).encode()


@settings(max_examples=60, deadline=None)
@given(filename=st.text(max_size=20) | st.sampled_from(["..", "/etc/passwd", "1", "../1/model.onnx", "./model.onnx"]))
def test_no_configured_file_name_leaves_the_model(filename: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "filenames"
    put(root / "m" / "1" / "model.onnx")
    config = ModelConfig(default_model_filename=filename)
    try:
        found = Repository([root]).find("m", config=config)
    except LoadFailed:
        return
    assert os.path.realpath(found.versions[0].path).startswith(os.path.realpath(root / "m"))


def test_a_hundred_models_are_found_in_a_moment(tmp_path: Path) -> None:
    """Meant to take under 100 ms; the bound leaves room for a busy machine and still catches a square."""
    from time import perf_counter

    for number in range(100):
        put(tmp_path / f"m{number}" / "1" / "model.onnx")
        put(tmp_path / f"m{number}" / "config.pbtxt", f'name: "m{number}" max_batch_size: 8 dynamic_batching {{ }}')
    repository = Repository([tmp_path])
    seconds = []
    for _ in range(5):
        started = perf_counter()
        assert len(repository.scan().models) == 100
        seconds.append(perf_counter() - started)
    assert min(seconds) < 0.5
