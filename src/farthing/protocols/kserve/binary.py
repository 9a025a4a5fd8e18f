"""The binary tensor data extension: lengths, and raw bytes to tensors."""


def parse_header_length(value: bytes | str, body_bytes: int) -> int:
    """The value of `Inference-Header-Content-Length`, for a (decompressed) body of that many bytes.

    Raises `InvalidInput` unless it is plain decimal digits, fits int32 and lies within the body.
    """
    raise NotImplementedError
