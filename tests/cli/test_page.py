"""The page of text as one model, over HTTP: several pages at once, one upside down, one empty, and what is no page."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from farthing.cli.demo_server import serving
from farthing.cli.demo_tasks.page import EXPECTED, Page
from farthing.client import Client
from farthing.repository.samples import input_folder
from farthing.types.errors import FarthingError

pytestmark = pytest.mark.samples


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(["ppocr-v4"]) as url:
        yield url


def encoded(picture: NDArray[np.uint8], ending: str = ".png") -> bytes:
    done, content = cv2.imencode(ending, picture)
    assert done
    return content.tobytes()


def asked(page: bytes) -> dict[str, NDArray[np.generic]]:
    return {"page": np.array([page], object)}


def test_pages_at_once_are_each_read_as_if_alone(url: str) -> None:
    page = (input_folder("photographs") / "page.png").read_bytes()
    pixels = cv2.imdecode(np.frombuffer(page, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    blank = encoded(np.full((320, 480, 3), 255, np.uint8), ".jpg")
    turned = encoded(np.asarray(pixels)[::-1, ::-1].astype(np.uint8))
    with Client(url) as client, ThreadPoolExecutor(5) as clients:
        answers = list(clients.map(lambda one: client.infer("ppocr-v4", asked(one)), [page, blank, page, turned]))
    for answer in (answers[0], answers[2]):
        assert [text.decode() for text in answer["text"]] == [text for text, _ in EXPECTED]
        np.testing.assert_allclose(answer["score"], [score for _, score in EXPECTED], atol=0.01)
        assert (answer["box"].shape, answer["box"].dtype) == ((5, 4, 2), np.float32)
        assert (np.diff(answer["box"][:, 0, 1]) > 0).all(), "from top to bottom"
    empty = answers[1]
    assert {name: (tensor.shape, tensor.dtype.name) for name, tensor in empty.items()} == {
        "text": ((0,), "object"),
        "score": ((0,), "float32"),
        "box": ((0, 4, 2), "float32"),
    }
    upside_down = [text.decode() for text in answers[3]["text"]]
    # Two of the five; of the others the classifier is not sure enough, and the recogniser can make nothing of them.
    assert EXPECTED[1][0] in upside_down


def test_what_is_no_page_is_refused_and_the_next_page_is_read(url: str) -> None:
    strip = encoded(np.full((4, 4000, 3), 255, np.uint8))
    with Client(url) as client:
        for content, words in (
            (b"", "no picture"),
            (b"\x89PNG\r\n\x1a\nrubbish", "no picture"),
            (strip, "allowed: 8192"),
        ):
            with pytest.raises(FarthingError, match=words) as caught:
                client.infer("ppocr-v4", asked(content))
            assert caught.value.http_status == 400
            assert "in ensemble step `ppocr-scale`" in caught.value.message
        assert all(finding.is_right for finding in Page().check(client))


def test_pages_may_come_as_a_stream_of_frames(url: str) -> None:
    page = (input_folder("photographs") / "page.png").read_bytes()
    blank = encoded(np.full((320, 480, 3), 255, np.uint8), ".jpg")
    with Client(url) as client, client.frames("ppocr-v4", policy="all", deadline_ms=60_000) as stream:
        for content in (page, blank, b"", page):
            stream.send(asked(content))
        stream.end()
        results = list(stream)
        assert [result.status for result in results] == ["ok", "ok", "error", "ok"]
        for result in (results[0], results[3]):
            assert result.is_on_time
            assert [text.decode() for text in result["text"]] == [text for text, _ in EXPECTED]
        assert len(results[1]["text"]) == 0
        assert (stream.summary["received"], stream.summary["on_time"], stream.summary["failed"]) == (4, 3, 1)
