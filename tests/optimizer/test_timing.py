import numpy as np

from farthing.optimizer.samples import Samples
from farthing.optimizer.timing import batch_of


def test_a_sample_of_a_model_without_rows_has_the_shape_it_was_given() -> None:
    samples = Samples(inputs={"x": np.ones((4, 2, 3), np.float32), "rate": np.arange(4)})
    inputs = batch_of(samples, [2], ["y"], has_batch_axis=False).inputs
    assert {name: array.shape for name, array in inputs.items()} == {"x": (2, 3), "rate": ()}
    assert isinstance(inputs["rate"], np.ndarray)
    assert inputs["rate"] == 2
