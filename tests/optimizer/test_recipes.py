"""The catalogue knows what each recipe can load, and what it lacks."""

from farthing.optimizer.recipes import CATALOGUE, PACKAGES, Facts, mixed, no_faster, settings_of, ways_for


def names(**more: object) -> list[str]:
    facts = Facts(**{"packages": PACKAGES, "cpu_flags": frozenset({"avx512_bf16"}), **more})
    return [way.recipe.name for way in ways_for(facts) if not way.lacks(facts)]


def test_names_are_as_many_as_recipes() -> None:
    assert len({way.recipe.name for way in CATALOGUE}) == len(CATALOGUE)
    assert all(way.why for way in CATALOGUE)


def test_a_network_is_tried_on_both_engines_and_a_forest_by_all_who_sum_it() -> None:
    network = names(engine="onnxruntime", form="onnx", operators=frozenset({"Conv", "Gemm"}))
    assert {"openvino f32", "openvino bf16", "onnxruntime f32 (plain layout)", "openvino int8 (entropy)"} <= set(
        network
    )
    assert "onnxruntime int4 (weights)" in network
    assert names(engine="trees", form="xgboost") == ["trees f32 (compiled)", "trees f32 (xgboost)"]
    assert names(engine="trees", form="lightgbm") == ["trees f32 (compiled)"]
    assert names(engine="openvino", form="openvino") == ["openvino bf16"]


def test_a_model_without_matrices_has_no_weights_to_pack_and_one_without_convolutions_no_layout() -> None:
    assert not any(
        "weights" in name for name in names(engine="onnxruntime", form="onnx", operators=frozenset({"Conv"}))
    )
    assert not any(
        "layout" in name for name in names(engine="onnxruntime", form="onnx", operators=frozenset({"MatMul"}))
    )


def test_a_cleaned_graph_takes_the_plain_one_s_place() -> None:
    cleaned = names(engine="onnxruntime", form="onnx", is_cleaned=True)
    assert "openvino f32 (clean)" in cleaned
    assert "openvino f32" not in cleaned


def test_what_is_missing_is_said_with_what_brings_it() -> None:
    facts = Facts(engine="trees", form="xgboost")
    assert [way.lacks(facts) for way in ways_for(facts)] == [
        "needs llvmlite: pip install 'farthing[trees]'",
        "needs xgboost: pip install 'farthing[trees]'",
    ]
    plain = Facts(engine="openvino", form="openvino", packages=PACKAGES)
    assert [way.lacks(plain) for way in ways_for(plain)] == ["this processor has no amx_bf16 or avx512_bf16"]


def test_settings_fill_the_cores_wide_and_narrow() -> None:
    settings = settings_of(CATALOGUE[0].recipe, 4, rows_max=2)
    assert [(s.threads, s.instances, s.rows) for s in settings] == [
        (4, 1, 1), (4, 1, 2), (2, 2, 1), (2, 2, 2), (1, 4, 1), (1, 4, 2),
    ]  # fmt: skip


def test_of_int8_files_that_differ_in_numbers_alone_one_that_is_right_is_enough() -> None:
    by_name = {way.recipe.name: way.recipe for way in CATALOGUE}
    right = [by_name["openvino int8 (minmax)"], by_name["openvino bf16"]]
    assert (
        no_faster(by_name["openvino int8 (entropy)"], right) == "no faster than openvino int8 (minmax), which is right"
    )
    assert not no_faster(by_name["onnxruntime int8 (entropy)"], right)
    assert not no_faster(by_name["openvino int8 (smooth)"], right)


def test_layers_that_int8_hurts_are_left_in_the_fastest_float_there_is() -> None:
    fast = mixed("int8_smooth", "openvino", 2, frozenset({"avx512_bf16"}))
    assert fast.parameters == {"precision": "bf16"}
    assert fast.name == "openvino int8 (smooth, 2 of 8 parts bf16)"
    plain = mixed("int8_smooth", "openvino", 2, frozenset())
    assert plain.name == "openvino int8 (smooth, 2 of 8 parts float)"
    assert not plain.parameters
    assert mixed("int8_smooth", "onnxruntime", 1, frozenset({"avx512_bf16"})).rest == "f32"
