"""Measuring endpoints: loads, drivers, statistics, reports. `run` measures, `cli.bench` is its face."""
