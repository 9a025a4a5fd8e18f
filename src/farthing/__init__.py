"""Farthing serves trained models as the cheapest endpoint that meets a latency target."""

from typing import Final

__version__: Final = "0.1.0"
