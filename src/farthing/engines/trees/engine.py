"""The trees engine: which files are forests, and how one is loaded.

Reading a format belongs to the parser named after it, what clients see to `interface`, running to `executable`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from farthing.engines.trees.forest import BadModel, Forest
from farthing.types.errors import LoadFailed

if TYPE_CHECKING:
    from farthing.engines.contract import ModelSource
    from farthing.engines.trees.executable import ForestExecutable
    from farthing.engines.trees.runtimes import SummedForest

MODEL_BYTES_MAX: Final = 512 << 20
"""Bytes of a model file: some five million leaves as text. Parsing may take ten times as much memory for a moment."""

HEAD_BYTES: Final = 64 << 10
"""How much of a `.json` file is looked at to tell whose it is: its names come before its trees."""

_UBJSON_KEY_WITHIN: Final = 4096
_XGBOOST_FORMATS: Final = ("xgboost_json", "xgboost_ubj")
_Document = TypeVar("_Document")


class Trees:
    """LightGBM text and JSON, XGBoost JSON and UBJSON models."""

    name = "trees"
    aliases = ("fil", "lightgbm", "xgboost")
    default_filenames = ("model.txt", "xgboost.json", "xgboost.ubj", "model.json", "model.ubj", "lightgbm.json")
    suffixes = (".txt", ".json", ".ubj")

    def recognises(self, path: Path) -> bool:
        """Whether the first bytes are those of a format named in `_format_of`."""
        if path.suffix not in self.suffixes or not path.is_file():
            return False
        try:
            with path.open("rb") as file:
                return bool(_format_of(file.read(HEAD_BYTES)))
        except OSError:
            return False

    def load(self, source: "ModelSource") -> "ForestExecutable | SummedForest":
        """Parses, checks and compiles the model. Raises `LoadFailed`."""
        from farthing.engines.trees.executable import ForestExecutable
        from farthing.engines.trees.interface import interface_of
        from farthing.engines.trees.runtimes import USUAL, SummedForest, runtime_of

        path = source.path
        try:
            size = path.stat().st_size
            if not path.is_file():  # a pipe would be waited for
                raise BadModel("not a plain file")
            if size > MODEL_BYTES_MAX:
                raise BadModel(f"{size} bytes; {MODEL_BYTES_MAX} are allowed")
            raw = path.read_bytes()
            model_format = _format_of(raw[:HEAD_BYTES])
            forest = _parse(raw, model_format)
            runtime = runtime_of(source)
            if runtime != USUAL:
                return SummedForest(forest, interface_of(forest, source), model_format, source, raw, runtime)
            del raw
            return ForestExecutable(forest, interface_of(forest, source), model_format, source)
        except (BadModel, UnicodeDecodeError) as error:
            reason, hint = str(error), "check that the file is whole and was written by the library's own `save_model`"
        except msgspec.MsgspecError as error:
            reason, hint = str(error), "save the model again with its training library"
        except RecursionError:
            reason, hint = "nested too deeply", "save the model as text (LightGBM) or UBJSON (XGBoost)"
        except OSError as error:
            reason, hint = error.strerror or str(error), ""
        raise LoadFailed(f"{path}: {reason}", hint=hint)


def _format_of(head: bytes) -> str:
    """The format by a file's first bytes; empty if it is none of ours."""
    if head.startswith((b"tree\n", b"tree\r\n")):
        return "lightgbm_text"
    if not head.lstrip().startswith(b"{"):
        return ""
    if b"learner" in head[:_UBJSON_KEY_WITHIN] and head[1:2] in (b"L", b"i", b"U", b"I", b"l"):
        return "xgboost_ubj"
    if b'"tree_info"' in head and b'"learner"' not in head:
        return "lightgbm_json"
    if b'"learner"' in head:
        return "xgboost_json"
    return "lightgbm_json" if b'"num_tree_per_iteration"' in head else ""


def _parse(raw: bytes, model_format: str) -> Forest:
    if model_format == "lightgbm_text":
        from farthing.engines.trees.lightgbm_text import parse_text

        return parse_text(raw)
    if model_format == "lightgbm_json":
        from farthing.engines.trees import lightgbm_json

        return lightgbm_json.forest_of(_decode(raw, lightgbm_json.LightGBMModel))
    if model_format in _XGBOOST_FORMATS:
        from farthing.engines.trees import xgboost
        from farthing.engines.trees.ubjson import parse_ubjson

        if model_format == "xgboost_ubj":
            return xgboost.forest_of(msgspec.convert(parse_ubjson(raw), xgboost.XGBoostModel))
        return xgboost.forest_of(_decode(raw, xgboost.XGBoostModel))
    raise BadModel("neither a LightGBM text or JSON model nor an XGBoost JSON or UBJSON model")


def _decode(raw: bytes, document: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(raw, type=document)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Both libraries write statistics that are not finite as NaN and Infinity, which is no JSON to msgspec.
        if b"NaN" not in raw and b"Infinity" not in raw:
            raise
        try:
            return msgspec.convert(json.loads(raw), document)
        except ValueError as error:
            raise BadModel(str(error)[:200]) from error
