"""Where is more load no longer worth its wait? The knee of a curve of latency against throughput.

Kleinrock's power, throughput over latency, is highest there (Kleinrock, ICC 1979): below it the server idles, above it
requests only wait longer.
"""

from collections.abc import Sequence


def knee(rates: Sequence[float], latencies: Sequence[float]) -> int | None:
    """Index of the point with the most power.

    None where there are fewer than three points or the last one has it: then the knee has not been seen.
    """
    powers = [rate / latency if latency > 0 else 0.0 for rate, latency in zip(rates, latencies, strict=True)]
    if len(powers) < 3:
        return None
    best = max(range(len(powers)), key=powers.__getitem__)
    return best if best < len(powers) - 1 else None
