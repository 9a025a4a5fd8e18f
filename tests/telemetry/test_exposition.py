from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from farthing.telemetry.exposition import ExpositionWriter, Family, label_text

GAUGE = Family("a_gauge", "gauge", ("model",), "things", "Things\nby model \\ name")
COUNTER = Family("nv_inference_count", "counter", (), "rows", "Rows")
HISTOGRAM = Family("a_histogram", "histogram", (), "seconds", "Times")


def test_families_are_written_as_the_text_format_says() -> None:
    writer = ExpositionWriter()
    writer.family(GAUGE)
    writer.sample(label_text(("model",), ('a "b" \\ c\n',)), 1.5)
    writer.family(COUNTER)
    writer.sample("", 7)
    writer.family(HISTOGRAM)
    writer.histogram('model="m"', (0.1, 1.0), (3, 0, 2), 12.25)
    assert writer.text().decode() == (
        "# HELP a_gauge Things\\nby model \\\\ name\n"
        "# TYPE a_gauge gauge\n"
        'a_gauge{model="a \\"b\\" \\\\ c\\n"} 1.5\n'
        "# HELP nv_inference_count Rows\n"
        "# TYPE nv_inference_count counter\n"
        "nv_inference_count 7\n"
        "# HELP a_histogram Times\n"
        "# TYPE a_histogram histogram\n"
        'a_histogram_bucket{model="m",le="0.1"} 3\n'
        'a_histogram_bucket{model="m",le="1.0"} 3\n'
        'a_histogram_bucket{model="m",le="+Inf"} 5\n'
        'a_histogram_sum{model="m"} 12.25\n'
        'a_histogram_count{model="m"} 5\n'
    )


# The parser splits lines as Python does, Prometheus only at line feeds: leave the other separators to the latter.
labels = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))


@given(labels, st.integers(0, 2**60) | st.floats(0, 1e15))
def test_any_label_value_and_number_come_back_from_prometheus_own_parser(label: str, value: float) -> None:
    writer = ExpositionWriter()
    writer.family(GAUGE)
    writer.sample(label_text(("model",), (label,)), value)
    (family,) = text_string_to_metric_families(writer.text().decode())
    (sample,) = family.samples
    assert sample.labels == {"model": label}
    assert sample.value == value
