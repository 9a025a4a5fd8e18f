"""How a sample's raw files become models: one module a recipe, each with `build(raw, out)`.

`raw` holds the files the catalogue asked for; the recipe writes `out/MODEL/1/model.onnx` and what belongs beside it.
Recipes need the `samples` extra, are imported when used, and never execute anything a package brought.
"""
