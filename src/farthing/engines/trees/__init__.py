"""Gradient boosted trees and random forests of LightGBM and XGBoost, without their libraries.

    file -> lightgbm_text | lightgbm_json | xgboost (ubjson) -> Forest -> onnx_writer -> ONNX Runtime -> Link

A parser turns a file nobody trusts into a checked `Forest`; the forest is written as one ONNX `TreeEnsemble` node in
memory, whose sums come out bit for bit as the training library's; the link (sigmoid, softmax, ...) is applied to
them. Why ONNX Runtime: docs/decisions/0003. `runtimes` has other ways to sum, where a configuration or a plan asks.
"""

from farthing.engines.trees.engine import Trees

__all__ = ["Trees"]
