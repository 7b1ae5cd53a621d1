"""The published sweeps that the profiles follow, row by row.

One NVIDIA DGX Spark (GB10, 128 GB), vLLM 26.03, 1,500 prompt tokens and at most 400 output tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One N of a published table.

    Attributes:
        concurrency: N.
        tokens_per_s: aggregate.
        per_sequence_tokens_per_s: mean over requests.
        wall_s: of the whole wave; of `mamba`, the mean of its requests.
        timeouts: after 900 s.
    """

    concurrency: int
    tokens_per_s: float
    per_sequence_tokens_per_s: float
    wall_s: float
    timeouts: int = 0


#: Seconds after which the published client gave a request up.
TIMEOUT_S = 900.0

#: By the alias of the profile.
TABLES: dict[str, tuple[Row, ...]] = {
    "dense": (
        Row(1, 5.79, 5.79, 69.1),
        Row(2, 11.43, 5.72, 70.0),
        Row(4, 22.79, 5.7, 70.2),
        Row(8, 45.41, 5.68, 70.5),
        Row(16, 86.47, 5.41, 74.0),
        Row(32, 161.9, 5.08, 79.1),
        Row(48, 227.71, 4.77, 84.3),
        Row(64, 289.0, 4.56, 88.6),
        Row(96, 390.41, 4.11, 98.4),
        Row(128, 490.68, 3.92, 104.4),
        Row(160, 547.89, 3.54, 116.8),
        Row(192, 607.82, 3.27, 126.4),
        Row(224, 651.61, 3.07, 137.5),
        Row(256, 695.11, 2.85, 147.3),
        Row(320, 514.69, 2.37, 248.7),
    ),
    "moe": (
        Row(1, 33.53, 33.58, 11.9),
        Row(2, 59.52, 29.79, 13.4),
        Row(4, 87.56, 21.92, 18.3),
        Row(8, 123.39, 15.44, 25.9),
        Row(16, 173.19, 10.89, 36.8),
        Row(32, 252.3, 7.95, 50.6),
        Row(64, 373.27, 5.9, 68.6),
        Row(96, 481.35, 5.11, 79.8),
        Row(128, 564.71, 4.52, 90.6),
        Row(192, 705.41, 3.85, 108.8),
        Row(256, 862.84, 3.62, 118.7),
        Row(384, 771.17, 3.15, 199.1),
    ),
    "mamba": (
        Row(1, 26.19, 26.21, 15),
        Row(2, 51.08, 25.54, 16),
        Row(8, 153.18, 19.2, 21),
        Row(16, 155.59, 14.0, 31),
        Row(32, 156.82, 9.63, 52),
        Row(64, 156.69, 6.06, 94),
        Row(128, 155.11, 3.58, 179),
        Row(256, 154.97, 2.13, 342),
        Row(384, 153.75, 1.71, 471, timeouts=24),
    ),
}
