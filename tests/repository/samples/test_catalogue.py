"""The catalogue is data; these are the mistakes one makes in it."""

import re
from importlib.util import find_spec

import pytest

from farthing.repository.samples.catalogue import INPUTS, SAMPLES, Sample, catalogue, sample_named
from farthing.types.errors import NotFound


@pytest.mark.parametrize("sample", [*SAMPLES, *INPUTS], ids=lambda sample: sample.name)
def test_every_entry_can_be_carried_out(sample: Sample) -> None:
    assert sample.licence
    assert not sample.recipe or find_spec(f"farthing.repository.samples.recipes.{sample.recipe}")
    for member in sample.members:
        assert re.fullmatch("[0-9a-f]{64}", member.sha256)
        top = member.place.split("/")[0]
        assert ".." not in member.place
        assert top in sample.models or (top == "raw" and sample.recipe)
    made = {member.place.split("/")[0] for member in sample.members}
    assert set(sample.models) <= made or sample.recipe


def test_no_two_samples_share_a_name_or_a_folder() -> None:
    folders = [model for sample in catalogue() for model in sample.models]
    assert len(folders) == len(set(folders))
    assert len({sample.name for sample in [*SAMPLES, *INPUTS]}) == len(SAMPLES) + len(INPUTS)


def test_a_sample_is_found_with_or_without_its_prefix() -> None:
    assert sample_named("sample:ppocr-v4") is sample_named("ppocr-v4")
    assert sample_named("ppocr-v4").models[:4] == ("ppocr-v4", "ppocr-det", "ppocr-cls", "ppocr-rec")


def test_an_unknown_sample_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"no sample is called `resnet`; samples: effnet-lite0, minilm-l6") as caught:
        sample_named("sample:resnet")
    assert "pull --list" in caught.value.hint


def test_data_that_may_not_be_redistributed_says_so() -> None:
    assert "may be redistributed" in sample_named("movielens-dlrm").notice
