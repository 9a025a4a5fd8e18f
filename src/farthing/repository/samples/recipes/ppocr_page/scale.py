"""A page as its file has it, to pixels, and to the planes the detector reads."""

import os

# Before OpenCV is imported: a file of a few kilobytes may say that it is a picture of a terabyte.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 26))

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import cv2
import numpy as np

from farthing import Tensor
from farthing.types.errors import InvalidInput

SHORT_SIDE_MIN: Final = 736
SIDE_MULTIPLE: Final = 32
SIDE_MAX: Final = 8192
"""Of the scaled page: a strip of one pixel's height would become gigabytes."""
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


class Scale:
    """A page BYTES [1] to pixels UINT8 [height, width, 3] (blue first) and planes FP32 [1, 3, height, width]."""

    inputs: ClassVar = [Tensor("page", "BYTES", [1])]
    outputs: ClassVar = [Tensor("pixels", "UINT8", [-1, -1, 3]), Tensor("planes", "FP32", [1, 3, -1, -1])]
    max_batch_size = 0

    def infer(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        pixels = decoded(inputs["page"][0])
        height, width = pixels.shape[:2]
        factor = max(1.0, SHORT_SIDE_MIN / min(height, width))
        height_in, width_in = (
            max(1, round(int(side * factor) / SIDE_MULTIPLE)) * SIDE_MULTIPLE for side in (height, width)
        )
        if max(height_in, width_in) > SIDE_MAX:
            raise InvalidInput(
                f"a page of {height} x {width} pixels is scaled to {height_in} x {width_in}; allowed: {SIDE_MAX}",
                hint="cut it up, or send it smaller",
            )
        scaled = np.asarray(cv2.resize(pixels, (width_in, height_in)), np.float32)
        return {"pixels": pixels, "planes": ((scaled / 255 - 0.5).transpose(2, 0, 1) / 0.5)[None]}


def decoded(content: bytes) -> Any:
    """The pixels in a file. Raises `InvalidInput`."""
    try:
        picture = cv2.imdecode(np.frombuffer(_without_profile(content), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise InvalidInput(
            f"the page ({len(content)} bytes) is no picture that can be read, or one of over 67 million pixels",
            hint="send the bytes of a PNG or JPEG file",
        )
    return picture


def _without_profile(content: bytes) -> bytes:
    """A PNG less its colour profile, which is not used, and about which OpenCV complains when it is bad."""
    start = len(PNG_SIGNATURE)
    if not content.startswith(PNG_SIGNATURE):
        return content
    kept = [PNG_SIGNATURE]
    while start < len(content):  # chunks: length, four letters, data, checksum
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] != b"iCCP":
            kept.append(content[start:end])
        start = end
    return b"".join(kept)
