"""Engines run tensors. One contract, one file a runtime; `registry` lists them."""
