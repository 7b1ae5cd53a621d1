"""The tables of docs/auto.md from the benchmark's last line: `python table.py < output`."""

from __future__ import annotations

import json
import sys
from typing import Any

MODES = {"M": "server metrics (M)", "T": "streamed tokens (T)", "C": "completions only (C)"}
SERVERS = ("dense", "moe", "mamba")

Row = dict[str, Any]


def share(row: Row) -> str:
    """Percent of the best at 45 min / 4 h."""
    return f"{100 * row['at_45_min']:.0f} / {100 * row['at_4_h']:.0f}"


def worst(row: Row) -> str:
    """The same, of the worst seed."""
    return f"{100 * row['at_45_min_worst']:.0f} / {100 * row['at_4_h_worst']:.0f}"


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    result: Row = json.loads(sys.stdin.read().splitlines()[-1])
    published, compared = result["published"], result["compared"]
    rows = [[name, *(share(row[s]) for s in SERVERS)] for name, row in compared.items()]
    rows += [
        [f"**auto, {words}**", *(share(published[s][mode]) for s in SERVERS)]
        for mode, words in MODES.items()
    ]
    print(table(["% of the best at 45 min / 4 h", *SERVERS], rows), end="\n\n")
    rows = [
        [
            f"{server}, {mode}",
            worst(row),
            f"{row['d_to_90_percent']:g}",
            f"{row['most_in_flight_over_best_n']:g} ({row['most_in_flight_over_best_n_worst']:g})",
            f"{row['n']} ({row['best_n']})",
            str(row["timeouts"]),
        ]
        for server in SERVERS
        for mode, row in published[server].items()
    ]
    headings = ["", "worst seed", "D until 90 %", "most in flight / best N (worst seed)"]
    print(table([*headings, "N at the end (best)", "timeouts"], rows), end="\n\n")
    rows = [
        [words, *(f"{share(row[s])}, worst {worst(row[s])}" for s in SERVERS)]
        for words, row in result["changed"].items()
    ]
    print(table(["M", *SERVERS], rows), end="\n\n")
    rows = [
        [
            server,
            f"{100 * row['total_over_best']:.0f} %",
            f"{100 * row['own_share_of_tokens_beside_it']:.0f} %",
            f"{row['n']} (never below {row['smallest_n_beside_it']})",
        ]
        for server, row in result["shared"].items()
    ]
    print(table(["M", "both clients' tokens / best", "own share", "own N"], rows), end="\n\n")
    rows = [
        [
            kind,
            share(row),
            f"{100 * row['at_4_h_worst']:.0f}",
            f"{row['most_in_flight_over_best_n']:g}",
        ]
        for kind, row in result["unseen_by_kind"].items()
    ]
    headings = ["random servers, M", "45 min / 4 h", "worst run at 4 h"]
    print(table([*headings, "most in flight / best N"], rows), end="\n\n")
    rows = [
        [
            words,
            f"{100 * row['at_45_min']:.0f} ({100 * row['at_45_min_worst']:.0f})",
            f"{100 * row['last_30_min']:.0f} ({100 * row['last_30_min_worst']:.0f})",
            f"{row['n']} ({row['best_n']})",
        ]
        for words, row in result["real"].items()
    ]
    headings = ["of the shape of a real one, M", "45 min (worst seed)", "its last 30 min"]
    print(table([*headings, "N at the end (best)"], rows))


if __name__ == "__main__":
    main()
