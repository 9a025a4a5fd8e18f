"""Files that clients bring: nothing outside their own folder ever changes, whatever they are called."""

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from farthing.repository import uploads as uploads_file
from farthing.repository.upload_paths import check_paths
from farthing.repository.uploads import PREFIX, STALE_S, Uploads
from farthing.types.errors import InvalidInput, Overloaded


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every path below a folder, links not followed, with its kind and content."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(place) / name
            is_file = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(folder))] = (path.lstat().st_mode, path.read_bytes() if is_file else b"")
    return found


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "1/../../x",
        "./1",
        "1//x",
        "1/",
        "1\\x",
        "..\\x",
        "c:/x",
        "c:x",
        "1/x:stream",
        "1/x\0",
        "1/\n",
        "1/.hidden",
        "1/x.",
        "1/x ",
        "1/\udc80",
        "1/" + "a" * 256,
        "1/" + "ä" * 128,
        "/".join("a" * 250 for _ in range(5)),
        "/".join("a" * 17),
    ],
)
def test_a_path_that_is_not_plainly_inside_the_folder_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="file:"):
        check_paths([path])


@pytest.mark.parametrize(
    "paths",
    [
        ("1", "1/x"),
        ("1/x", "1"),
        ("1/x", "1/X"),
        ("1/X/a", "1/x/b"),
        ("1/stra\u00dfe", "1/STRASSE"),
        ("1/\u00e9", "1/e\u0301"),
        ("A", "a/b"),
        ("a/b", "A"),
    ],
)
def test_paths_that_some_system_holds_to_be_one_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(InvalidInput, match="is the same as"):
        check_paths(paths)


PARTS = st.sampled_from(
    ["1", "2", "model.onnx", "..", ".", "", "~", "outside", "link", "secret", "a\\b", "C:", "\0", "x" * 256, "A", "a"]
) | st.text(max_size=5)
PATHS = st.builds(lambda parts, front: front + "/".join(parts), st.lists(PARTS, max_size=6), st.sampled_from(["", "/"]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(PATHS | st.text(max_size=20), st.binary(max_size=8), max_size=5), st.booleans())
@example({"1/model.onnx": b"x", "labels.txt": b"y"}, True)
@example({"../outside/secret": b"x"}, False)
def test_nothing_outside_the_folder_ever_changes(tmp_path: Path, files: Mapping[str, bytes], is_checked: bool) -> None:
    """Unchecked too: then it is the walk itself that must not leave the folder, but for `..`, which only the check
    refuses."""
    (tmp_path / "outside").mkdir(exist_ok=True)
    (tmp_path / "outside" / "secret").write_bytes(b"as it was")
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    before = everything(tmp_path)
    place = Uploads(base)
    if not is_checked:
        files = {path: content for path, content in files.items() if ".." not in path and not path.startswith("/")}
    try:
        with mock.patch.object(uploads_file, "check_paths", check_paths if is_checked else lambda paths: None):
            folder = place.write("net", files)
    except InvalidInput:
        pass
    except (OSError, ValueError):
        assert not is_checked, "what the check lets through can be written"
    else:
        inside = {path: content for path, (_, content) in everything(folder).items() if (folder / path).is_file()}
        assert not is_checked or inside == dict(files)
        after = everything(tmp_path)
        mine = f"base/{folder.relative_to(base).parts[0]}"
        assert {path: it for path, it in after.items() if not path.startswith(mine)} == before
        place.remove(folder)
        assert not any(path.startswith(f"{mine}/") for path in everything(tmp_path))
    place.close()
    assert everything(tmp_path) == before


def test_a_link_that_appears_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = Uploads(tmp_path)
    make = os.mkdir

    def linked(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if dir_fd is None:
            make(path, mode)
        else:
            os.symlink(outside, path, dir_fd=dir_fd)

    with mock.patch.object(os, "mkdir", linked), pytest.raises(OSError, match=r"[Nn]ot a directory|symbolic"):
        place.write("net", {"1/model.onnx": b"x"})
    assert list(outside.iterdir()) == []
    place.close()


def test_nobody_else_may_look(tmp_path: Path) -> None:
    place = Uploads(tmp_path)
    folder = place.write("net", {"1/model.onnx": b"x"})
    for path in (folder.parent.parent, folder.parent, folder, folder / "1", folder / "1" / "model.onnx"):
        assert path.stat().st_mode & 0o077 == 0
    place.close()


def test_what_all_take_together_is_bounded(tmp_path: Path) -> None:
    place = Uploads(tmp_path)
    with mock.patch.object(uploads_file, "UPLOADED_BYTES_MAX", 10):
        first = place.write("a", {"x": b"1" * 8})
        with pytest.raises(Overloaded, match="allowed: 10"):
            place.write("b", {"x": b"1" * 3})
        place.remove(first)
        place.write("b", {"x": b"1" * 3})
    with mock.patch.object(uploads_file, "UPLOADED_MODELS_MAX", 1), pytest.raises(Overloaded):
        place.write("c", {})
    place.close()


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    living = Uploads(tmp_path)
    kept = living.write("net", {"x": b"1"})
    dead = tmp_path / f"{PREFIX}dead"
    (dead / "1" / "net").mkdir(parents=True)
    fresh = tmp_path / f"{PREFIX}fresh"
    fresh.mkdir()
    link = tmp_path / f"{PREFIX}link"
    outside = tmp_path / "outside"
    outside.mkdir()
    link.symlink_to(outside)
    long_ago = time.time() - 2 * STALE_S
    for path in (dead, kept.parent.parent, outside):
        os.utime(path, (long_ago, long_ago))
    newcomer = Uploads(tmp_path)
    newcomer.write("other", {})
    assert not dead.exists()
    assert fresh.exists()
    assert outside.exists()
    assert (kept / "x").read_bytes() == b"1"
    newcomer.close()
    living.close()
    assert not kept.exists()


def test_the_lock_ends_with_the_process_s_descriptor(tmp_path: Path) -> None:
    place = Uploads(tmp_path)
    own = place.write("net", {}).parent.parent
    held = os.open(own, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    place.close()
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(held)
