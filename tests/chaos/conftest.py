"""The harness is the benchmark's: `benchmarks/chaos/chaoskit`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "chaos"))
