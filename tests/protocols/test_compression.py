"""Content codings: inflating with a limit, and choosing what to answer in."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farthing.protocols.compression import (
    DEFLATE_BYTES_MIN,
    Inflater,
    deflate,
    inflate,
    request_encoding,
    response_encoding,
)
from farthing.types.errors import InvalidInput, TooLarge, Unsupported

PACK = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}
LARGE = DEFLATE_BYTES_MIN


@given(body=st.binary(max_size=2000), encoding=st.sampled_from(sorted(PACK)), piece=st.integers(1, 50))
def test_a_body_comes_back_whole_however_it_is_cut(body, encoding, piece) -> None:
    packed = PACK[encoding](body)
    inflater = Inflater(encoding, len(body))
    found = b"".join(inflater.feed(packed[at : at + piece]) for at in range(0, len(packed), piece))
    inflater.finish()
    assert found == body == inflate(memoryview(packed), encoding, len(body))


@given(body=st.binary(max_size=2000), encoding=st.sampled_from(sorted(PACK)))
def test_what_we_deflate_others_inflate(body, encoding) -> None:
    unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, "identity": bytes}[encoding]
    assert unpack(deflate(body, encoding)) == unpack(deflate([body[:7], memoryview(body[7:])], encoding)) == body


@pytest.mark.parametrize("encoding", PACK)
def test_the_limit_may_be_reached_and_not_passed(encoding) -> None:
    packed = PACK[encoding](bytes(1000))
    assert len(inflate(packed, encoding, 1000)) == 1000
    with pytest.raises(TooLarge, match="exceeds the maximum allowed input size of 999 bytes"):
        inflate(packed, encoding, 999)


def test_a_bomb_is_never_inflated_beyond_the_limit(monkeypatch) -> None:
    made = []

    class Watched:
        def __init__(self, real):
            self.real = real

        def decompress(self, data, max_length):
            piece = self.real.decompress(data, max_length)
            made.append(len(piece))
            return piece

        def __getattr__(self, name):
            return getattr(self.real, name)

    real = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda bits: Watched(real(bits)))
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(TooLarge):
        inflate(bomb, "gzip", 1000)
    assert sum(made) == 1001


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p[:-1],
        lambda p: p + b"x",
        lambda p: b"x" + p,
        lambda p: p[:5],
        lambda p: b"",
        lambda p: p[:-1] + bytes([p[-1] ^ 1]),
    ],
)
def test_broken_bodies_are_the_clients_fault(encoding, spoil) -> None:
    with pytest.raises(InvalidInput, match=encoding):
        inflate(spoil(PACK[encoding](b"hello" * 10)), encoding, 1000)


def test_bytes_after_the_end_are_refused_in_the_next_piece_too() -> None:
    inflater = Inflater("gzip", 1000)
    inflater.feed(gzip.compress(b"a"))
    assert inflater.feed(b"") == b""
    with pytest.raises(InvalidInput, match="3 bytes follow"):
        inflater.feed(b"abc")


@given(data=st.binary(max_size=300), encoding=st.sampled_from(["gzip", "deflate"]))
def test_random_bytes_are_inflated_or_refused(data, encoding) -> None:
    for body in (data, PACK[encoding](b"hello")[:10] + data):
        try:
            inflate(body, encoding, 100)
        except InvalidInput:
            continue


def test_request_encodings_are_ours_or_unsupported() -> None:
    assert [request_encoding(name) for name in ("", "identity", "gzip", "GZip ", "x-gzip", "deflate")] == [
        "identity",
        "identity",
        "gzip",
        "gzip",
        "gzip",
        "deflate",
    ]
    for name in ("br", "gzip, deflate", "zstd", "x" * 1000):
        with pytest.raises(Unsupported, match="not supported") as caught:
            request_encoding(name)
        assert caught.value.http_status == 501
        assert "gzip, deflate" in caught.value.hint


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("", "identity"),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("GZIP;Q=0.5, Deflate ; q=0.8", "deflate"),
        ("gzip;q=0", "identity"),
        ("*", "gzip"),
        ("*;q=0.5, gzip;q=0", "deflate"),
        ("br", "identity"),
        ("br, zstd, gzip;q=0.1", "gzip"),
        ("identity", "identity"),
        ("identity, gzip;q=0.5", "identity"),
        ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=x", "identity"),
        ("gzip;q=", "identity"),
        ("gzip;q=1e9", "identity"),
        ("gzip;q=9", "gzip"),
        (";;;,,;q=1", "identity"),
        ("identity;q=0", "identity"),
        ("a," * 1000 + "gzip", "identity"),
    ],
)
def test_the_answer_is_in_what_the_client_likes_best(accept, encoding) -> None:
    assert response_encoding(accept, LARGE) == encoding


def test_small_answers_go_as_they_are_unless_that_is_forbidden() -> None:
    assert response_encoding("gzip", LARGE - 1) == "identity"
    assert response_encoding("gzip, identity;q=0", 1) == "gzip"
    assert response_encoding("gzip, *;q=0", 1) == "gzip"


@given(
    accept=st.text(max_size=60)
    | st.lists(st.sampled_from(["gzip", "deflate", "*", "identity", ";", "q=", "0.5", ",", "1", "."])).map("".join)
)
def test_no_accept_encoding_breaks_the_choice(accept) -> None:
    assert response_encoding(accept, LARGE) in PACK
