"""The models that recipes make: figures measured once from the packages named in the catalogue."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from farthing.repository.samples import sample_path, sample_paths
from farthing.repository.samples.recipes import movielens, wdbc

pytestmark = pytest.mark.samples


def session(sample: str) -> onnxruntime.InferenceSession:
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime.InferenceSession(str(sample_path(sample) / "1" / "model.onnx"))


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_minilm_gives_the_vector_its_authors_publish() -> None:
    ids = np.array([[101, 2023, 2003, 2019, 2742, 6251, 102]])  # "This is an example sentence"
    (vector,) = session("minilm-l6").run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_allclose(vector[0, :5], [0.0677, 0.0635, 0.0487, 0.0793, 0.0374], atol=5e-5)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_minilm_does_not_see_padding_or_neighbours() -> None:
    model = session("minilm-l6")
    ids = np.array([[101, 2023, 2003, 2019, 2742, 6251, 102]])
    (alone,) = model.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    padded = np.pad(np.repeat(ids, 2, axis=0), ((0, 0), (0, 5)))
    mask = np.array([[1] * 7 + [0] * 5, [1] * 12])
    (together,) = model.run(None, {"input_ids": padded, "attention_mask": mask})
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)


def test_efficientnet_rows_do_not_depend_on_each_other() -> None:
    model, pictures = session("effnet-lite0"), noise(3, 3, 224, 224)
    (together,) = model.run(None, {"image": pictures})
    (alone,) = model.run(None, {"image": pictures[1:2]})
    assert together.shape == (3, 1000)
    np.testing.assert_allclose(together[1], alone[0], atol=1e-4)
    assert len((sample_path("effnet-lite0") / "labels.txt").read_text().splitlines()) == 1000


def test_nanodet_takes_as_many_pictures_as_come() -> None:
    model, pictures = session("nanodet-g"), noise(2, 3, 416, 416)
    together = model.run(None, {"image": pictures})
    for row in range(2):
        for whole, alone in zip(together, model.run(None, {"image": pictures[row : row + 1]}), strict=True):
            np.testing.assert_allclose(whole[row], alone[0], atol=1e-4)
    names = [output.name for output in model.get_outputs()]
    assert names == [f"{kind}_{stride}" for kind in ("classes", "boxes") for stride in (8, 16, 32)]


@pytest.mark.parametrize(("height", "width"), [(32, 64), (96, 32)])
def test_centerface_takes_any_size_and_number(height: int, width: int) -> None:
    outputs = session("centerface").run(None, {"input.1": noise(2, 3, height, width)})
    assert [output.shape for output in outputs] == [(2, depth, height // 4, width // 4) for depth in (1, 2, 2, 10)]


def test_the_recognisers_alphabet_is_one_short_of_its_outputs() -> None:
    recogniser = sample_paths("ppocr-v4")[3]
    characters = (recogniser / "characters.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(characters) == 6625 - 1  # the first output is "no character"
    assert characters[-1] == " "


def test_trees_come_out_the_same_every_time(tmp_path: Path) -> None:
    for run in ("first", "second"):
        wdbc.build(tmp_path, tmp_path / run)
    first, second = ((tmp_path / run / "wdbc-gbdt/1/model.txt").read_bytes() for run in ("first", "second"))
    assert first == second == (sample_path("wdbc-gbdt") / "1/model.txt").read_bytes()


def test_films_are_learned_and_the_graph_computes_what_was_trained() -> None:
    folder = sample_path("movielens-dlrm")
    with np.load(folder / "held_out.npz") as held_out:
        inputs: dict[str, Any] = {name: held_out[name] for name in ("categories", "film")}
        liked = held_out["liked"]
    (scores,) = session("movielens-dlrm").run(None, inputs)
    ranks = scores[:, 0].argsort().argsort()
    positive = ranks[liked == 1]
    auc = (positive.sum() - len(positive) * (len(positive) - 1) / 2) / (len(positive) * (len(liked) - len(positive)))
    assert auc == pytest.approx(0.775, abs=0.005)


def test_gradients_are_the_slopes_of_the_loss() -> None:
    random = np.random.default_rng(1)
    batch = movielens.Ratings(
        random.integers(0, 3, (8, 5)), random.normal(size=(8, 20)), (random.random(8) < 0.5).astype(np.float64)
    )
    parameters = {
        name: value.astype(np.float64) for name, value in movielens._initial(random, np.full(5, 3), 20).items()
    }

    def loss() -> float:
        graph = movielens._forward(parameters, batch)
        return float(np.mean(np.logaddexp(0, graph.logit) - batch.liked * graph.logit))

    gradients = movielens._gradients(parameters, batch)
    for name, value in parameters.items():
        at = tuple(random.integers(0, side) for side in value.shape)
        kept, step = value[at], 1e-6
        value[at] = kept + step
        above = loss()
        value[at] = kept - step
        slope = (above - loss()) / (2 * step)
        value[at] = kept
        assert gradients[name][at] == pytest.approx(slope, rel=1e-3, abs=1e-6), name
