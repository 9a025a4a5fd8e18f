"""`python -m tests.soak --minutes 20`: the long form. `make soak` says it."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak.soak import soak


def main() -> None:
    """Exits with 1 if something grew, or an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--round-seconds", type=float, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faults = soak(Path(folder), rounds=max(3, round(60 * asked.minutes / asked.round_seconds)),
                      round_s=asked.round_seconds, warm_s=120)  # fmt: skip
    for fault in faults:
        print(f"FAULT: {fault}")
    sys.exit(bool(faults))


main()
