"""DLRM on MovieLens 100k: would this person rate this film four or more? Trained here in a few seconds.

The network of "Deep Learning Recommendation Model" (Naumov et al., 2019), small: embeddings of categories, a bottom
network for dense features, dot products of all pairs of those vectors, a top network on the dots. Training is plain
numpy with Adam and a fixed seed; no framework is needed for 50,000 numbers.

The data may be used for research and not redistributed (`notice` in the catalogue); it and all that is made from it
stay in the user's own cache folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from farthing.repository.samples.recipes.graph import Graph, int64

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

SEED: Final = 0
EMBEDDING_WIDTH: Final = 16
BOTTOM_WIDTH: Final = 32
TOP_WIDTHS: Final = (64, 32)
EPOCHS: Final = 2
"""A third epoch over-fits: held-out AUC falls."""
BATCH_ROWS: Final = 512
LEARNING_RATE: Final = 2e-3
ADAM: Final = (0.9, 0.999, 1e-8)
LIKED_FROM: Final = 4.0
HELD_OUT_SHARE: Final = 0.2
AGE_BAND_YEARS: Final = 10
CATEGORIES: Final = ("user", "film", "gender", "occupation", "age band")

MODEL_TOML: Final = """\
# categories: user, film, gender, occupation, age band. film: 19 genres (0 or 1) and year, (year - 1980) / 20.
max_batch_size = 512

[[input]]
name = "categories"
data_type = "TYPE_INT64"
dims = [5]

[[input]]
name = "film"
data_type = "TYPE_FP32"
dims = [20]

[[output]]
name = "liked"
data_type = "TYPE_FP32"
dims = [1]
"""


class Ratings(msgspec.Struct, frozen=True):
    """Rows of the model's two inputs, and whether the film was liked."""

    categories: Ints
    film: Floats
    liked: Floats

    def rows(self, chosen: Ints) -> "Ratings":
        return Ratings(self.categories[chosen], self.film[chosen], self.liked[chosen])


def build(raw: Path, out: Path) -> None:
    """Trains and writes `movielens-dlrm`, and beside it the ratings held out from training."""
    ratings = read_ratings(raw)
    order = np.random.default_rng(SEED).permutation(len(ratings.liked))
    held = int(len(order) * HELD_OUT_SHARE)
    parameters = train(ratings.rows(order[held:]), ratings.categories.max(axis=0) + 1)
    folder = out / "movielens-dlrm"
    write_onnx(parameters, folder / "1" / "model.onnx")
    (folder / "model.toml").write_text(MODEL_TOML, encoding="utf-8")
    test = ratings.rows(order[:held])
    np.savez_compressed(folder / "held_out.npz", categories=test.categories, film=test.film, liked=test.liked)


def read_ratings(raw: Path) -> Ratings:
    """Every rating with its person's and film's features, in the file's order."""
    people = {row[0]: row for row in _table(raw / "ml-100k.user")}
    films = {row[0]: row for row in _table(raw / "ml-100k.item")}
    rows = _table(raw / "ml-100k.inter")
    jobs = _numbered(person[3] for person in people.values())
    genres = _numbered(genre for film in films.values() for genre in film[3].split())
    features = {key: _film_features(film, genres) for key, film in films.items()}
    person_of, film_of = _numbered(people), _numbered(films)
    categories = np.array(
        [
            (
                person_of[person],
                film_of[film],
                int(people[person][2] == "F"),
                jobs[people[person][3]],
                int(people[person][1]) // AGE_BAND_YEARS,
            )
            for person, film, *_ in rows
        ],
        np.int64,
    )
    liked = np.array([float(row[2]) >= LIKED_FROM for row in rows], np.float32)
    return Ratings(categories, np.stack([features[row[1]] for row in rows]), liked)


def train(ratings: Ratings, category_counts: Ints) -> dict[str, Floats]:
    """The network's parameters after `EPOCHS` over the ratings; the same for the same input."""
    random = np.random.default_rng(SEED)
    parameters = _initial(random, category_counts, ratings.film.shape[1])
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in parameters.items()}
    step = 0
    for _ in range(EPOCHS):
        order = random.permutation(len(ratings.liked))
        for start in range(0, len(order), BATCH_ROWS):
            step += 1
            gradients = _gradients(parameters, ratings.rows(order[start : start + BATCH_ROWS]))
            _adam(parameters, gradients, moments, step)
    return parameters


def write_onnx(parameters: Mapping[str, Floats], path: Path) -> None:
    """The trained network as an ONNX model with a batch dimension."""
    graph = Graph("movielens_dlrm")

    def dense(x: str, layer: str) -> str:
        weight, bias = (graph.constant(parameters[f"{layer}.{part}"], f"{layer}.{part}") for part in ("w", "b"))
        return graph.add("Gemm", x, weight, bias)

    vectors = []
    for index in range(len(CATEGORIES)):
        column = graph.add("Gather", "categories", graph.constant(np.int64(index)), axis=1)
        table = graph.constant(parameters[f"table{index}"], f"table{index}")
        vectors.append(graph.add("Unsqueeze", graph.add("Gather", table, column), graph.constant(int64(1))))
    bottom = dense(graph.add("Relu", dense("film", "bottom0")), "bottom1")
    vectors.append(graph.add("Unsqueeze", bottom, graph.constant(int64(1))))
    stacked = graph.add("Concat", *vectors, axis=1)
    dots = graph.add("MatMul", stacked, graph.add("Transpose", stacked, perm=[0, 2, 1]))
    flat = graph.add("Reshape", dots, graph.constant(int64(0, len(vectors) ** 2)))
    upper, lower = _pairs()
    pairs = graph.add("Gather", flat, graph.constant(upper * len(vectors) + lower), axis=1)
    x = graph.add("Concat", bottom, pairs, axis=1)
    for layer in range(len(TOP_WIDTHS)):
        x = graph.add("Relu", dense(x, f"top{layer}"))
    graph.add("Sigmoid", dense(x, f"top{len(TOP_WIDTHS)}"), name="liked")
    width = parameters["bottom0.w"].shape[0]
    graph.save(
        path,
        {"categories": ("INT64", ("batch", len(CATEGORIES))), "film": ("FP32", ("batch", width))},
        {"liked": ("FP32", ("batch", 1))},
    )


def _pairs() -> tuple[Ints, Ints]:
    upper, lower = np.triu_indices(len(CATEGORIES) + 1, k=1)
    return upper.astype(np.int64), lower.astype(np.int64)


def _initial(random: np.random.Generator, category_counts: Ints, film_width: int) -> dict[str, Floats]:
    parameters = {
        f"table{index}": random.normal(0, 0.1, (count, EMBEDDING_WIDTH)).astype(np.float32)
        for index, count in enumerate(category_counts)
    }
    widths = (EMBEDDING_WIDTH + len(_pairs()[0]), *TOP_WIDTHS, 1)
    layers = {"bottom0": (film_width, BOTTOM_WIDTH), "bottom1": (BOTTOM_WIDTH, EMBEDDING_WIDTH)}
    layers |= {f"top{index}": (widths[index], widths[index + 1]) for index in range(len(widths) - 1)}
    for name, (inputs, outputs) in layers.items():
        parameters[f"{name}.w"] = random.normal(0, (2 / inputs) ** 0.5, (inputs, outputs)).astype(np.float32)
        parameters[f"{name}.b"] = np.zeros(outputs, np.float32)
    return parameters


class _Activations(msgspec.Struct, frozen=True):
    """What a forward pass leaves for the backward one."""

    hidden: Floats
    vectors: Floats
    tops: list[Floats]
    """Inputs of the top layers."""
    logit: Floats


def _forward(parameters: Mapping[str, Floats], batch: Ratings) -> _Activations:
    upper, lower = _pairs()
    hidden = np.maximum(batch.film @ parameters["bottom0.w"] + parameters["bottom0.b"], 0)
    bottom = hidden @ parameters["bottom1.w"] + parameters["bottom1.b"]
    tables = [parameters[f"table{index}"][batch.categories[:, index]] for index in range(len(CATEGORIES))]
    vectors = np.stack([*tables, bottom], axis=1)
    dots = (vectors @ vectors.transpose(0, 2, 1))[:, upper, lower]
    tops = [np.concatenate([bottom, dots], axis=1)]
    last = len(TOP_WIDTHS)
    for layer in range(last):
        tops.append(np.maximum(tops[-1] @ parameters[f"top{layer}.w"] + parameters[f"top{layer}.b"], 0))
    logit = (tops[-1] @ parameters[f"top{last}.w"] + parameters[f"top{last}.b"])[:, 0]
    return _Activations(hidden, vectors, tops, logit)


def _gradients(parameters: Mapping[str, Floats], batch: Ratings) -> dict[str, Floats]:
    """Slopes of the mean cross-entropy."""
    upper, lower = _pairs()
    was = _forward(parameters, batch)
    gradients: dict[str, Floats] = {}
    flow = ((1 / (1 + np.exp(-was.logit)) - batch.liked) / len(batch.liked))[:, None]
    for layer in range(len(TOP_WIDTHS), -1, -1):
        gradients[f"top{layer}.w"], gradients[f"top{layer}.b"] = was.tops[layer].T @ flow, flow.sum(axis=0)
        flow = flow @ parameters[f"top{layer}.w"].T
        if layer:
            flow = flow * (was.tops[layer] > 0)
    to_dots = np.zeros((len(flow), was.vectors.shape[1], was.vectors.shape[1]), flow.dtype)
    to_dots[:, upper, lower] = flow[:, EMBEDDING_WIDTH:]
    to_vectors = (to_dots + to_dots.transpose(0, 2, 1)) @ was.vectors
    to_bottom = flow[:, :EMBEDDING_WIDTH] + to_vectors[:, -1]
    gradients["bottom1.w"], gradients["bottom1.b"] = was.hidden.T @ to_bottom, to_bottom.sum(axis=0)
    to_hidden = (to_bottom @ parameters["bottom1.w"].T) * (was.hidden > 0)
    gradients["bottom0.w"], gradients["bottom0.b"] = batch.film.T @ to_hidden, to_hidden.sum(axis=0)
    for index in range(len(CATEGORIES)):
        table = np.zeros_like(parameters[f"table{index}"])
        np.add.at(table, batch.categories[:, index], to_vectors[:, index])
        gradients[f"table{index}"] = table
    return gradients


def _adam(
    parameters: dict[str, Floats],
    gradients: Mapping[str, Floats],
    moments: Mapping[str, tuple[Floats, Floats]],
    step: int,
) -> None:
    decay1, decay2, epsilon = ADAM
    rate = LEARNING_RATE * (1 - decay2**step) ** 0.5 / (1 - decay1**step)
    for name, gradient in gradients.items():
        first, second = moments[name]
        first += (1 - decay1) * (gradient - first)
        second += (1 - decay2) * (gradient * gradient - second)
        parameters[name] -= (rate * first / (np.sqrt(second) + epsilon)).astype(np.float32)


def _table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8") as lines:
        next(lines)  # names of the columns
        return [line.rstrip("\n").split("\t") for line in lines]


def _numbered(names: Any) -> dict[str, int]:
    return {name: index for index, name in enumerate(sorted(set(names)))}


def _film_features(film: list[str], genres: Mapping[str, int]) -> Floats:
    features = np.zeros(len(genres) + 1, np.float32)
    for genre in film[3].split():
        features[genres[genre]] = 1
    features[-1] = (int(film[2]) - 1980) / 20 if film[2].isdigit() else 0
    return features
