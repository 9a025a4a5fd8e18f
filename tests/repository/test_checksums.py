"""The `checksum` agent: right, wrong, missing, and what it must not be led to."""

import hashlib
from pathlib import Path

import pytest

from farthing.repository.checksums import check_agents
from farthing.repository.repository import Repository
from farthing.types.errors import LoadFailed

SHA = hashlib.sha256(b"weights").hexdigest()
MD5 = hashlib.md5(b"weights", usedforsecurity=False).hexdigest()


def check(tmp_path: Path, *agents: str) -> None:
    folder = tmp_path / "models" / "net"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes(b"weights")
    text = "".join(f"agents {{ {agent} }}" for agent in agents)
    (folder / "config.pbtxt").write_text(f"model_repository_agents {{ {text} }}")
    check_agents(Repository([tmp_path / "models"]).find("net"))


def checksum(key: str, value: str) -> str:
    return f'name: "checksum" parameters {{ key: "{key}" value: "{value}" }}'


@pytest.mark.parametrize(
    ("key", "value"), [("MD5", MD5), ("md5", MD5.upper()), ("SHA256", SHA), ("sha256", f" {SHA}\\n")]
)
def test_a_file_that_is_as_it_says_passes(tmp_path: Path, key: str, value: str) -> None:
    check(tmp_path, checksum(f"{key}:1/model.onnx", value))
    check(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SHA256:1/model.onnx", SHA[:-1] + "g", f"the file's is {SHA}"),
        ("SHA256:1/model.onnx", "\u00e9", "the configuration says"),
        ("MD5:1/model.onnx", SHA, "the configuration says"),
        ("MD5:1/nothing", MD5, "no such file"),
        ("MD5:1", MD5, "no such file"),
        ("SHA1:1/model.onnx", "00", "known: SHA256, MD5"),
        ("1/model.onnx", MD5, "known: SHA256, MD5"),
        ("MD5:", MD5, "not a path within"),
        ("MD5:../other", MD5, "not a path within"),
        ("MD5:/etc/passwd", MD5, "not a path within"),
    ],
)
def test_anything_else_stops_the_load_and_says_why(tmp_path: Path, key: str, value: str, words: str) -> None:
    with pytest.raises(LoadFailed, match=words):
        check(tmp_path, checksum(key, value))


def test_every_file_listed_must_be_right(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="the configuration says"):
        check(tmp_path, checksum("MD5:1/model.onnx", MD5), checksum("SHA256:1/model.onnx", MD5))


def test_other_agents_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="repository agent `decrypt`; agents here: checksum"):
        check(tmp_path, 'name: "decrypt"')
    with pytest.raises(LoadFailed, match="nothing to check"):
        check(tmp_path, 'name: "checksum"')


def test_a_link_out_of_the_repository_is_not_read(tmp_path: Path) -> None:
    check(tmp_path)
    (tmp_path / "outside").write_bytes(b"weights")
    (tmp_path / "models" / "net" / ".link").symlink_to(tmp_path / "outside")
    with pytest.raises(LoadFailed, match="leads out of"):
        check(tmp_path, checksum("MD5:.link", MD5))
