"""`fanout sweep` against `vllm bench serve`, vLLM's own client, on the same server in turn.

    make bench NAME=vllm ARGS="--url http://127.0.0.1:8000 --vllm /path/to/vllm"

Both send the same number of requests with as many prompt and output tokens, N at a time; at each N
they take turns, so that a server whose speed drifts is not held against either. Without --vllm the
tool `vllm` is looked for on PATH. Prompts are random for both, so that no prefix cache helps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FANOUT = str(Path(sys.executable).with_name("fanout"))
LIMIT_S = 3600


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench NAME=vllm")
    parser.add_argument("--url", required=True, help="the server, without /v1")
    parser.add_argument("--model", help="name that the server gives its model")
    parser.add_argument("--tokenizer", help="folder or name, for vLLM's client")
    parser.add_argument("--vllm", default=shutil.which("vllm"), help="vLLM's command")
    parser.add_argument("-c", "--concurrency", default="1,8,64,256")
    parser.add_argument("--waves", type=int, default=3, help="requests for each of the N slots")
    parser.add_argument("--least", type=int, default=64, help="requests at each N, at least")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--stream", action="store_true", help="fanout streams, as vLLM's does")
    chosen = parser.parse_args()
    if not chosen.vllm:
        parser.error("vLLM's command is not on PATH: name it with --vllm")
    return chosen


def waves(chosen: argparse.Namespace, n: int) -> int:
    """Requests for each of the N slots: a few short requests alone would measure chance."""
    return max(chosen.waves, -(-chosen.least // n))


def run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} : status {done.returncode}\n{done.stdout[-3000:]}")


def theirs(chosen: argparse.Namespace, n: int, place: Path, seed: int) -> dict[str, Any]:
    """What `vllm bench serve` measures at N."""
    named = ["--model", chosen.model] if chosen.model else []
    tokenizer = ["--tokenizer", chosen.tokenizer] if chosen.tokenizer else []
    run(
        [
            *(chosen.vllm, "bench", "serve", "--backend", "openai-chat", "--ignore-eos"),
            *("--base-url", chosen.url, "--endpoint", "/v1/chat/completions"),
            *("--dataset-name", "random", "--seed", str(seed)),
            *("--random-input-len", str(chosen.prompt_tokens)),
            *("--random-output-len", str(chosen.output_tokens)),
            *("--num-prompts", str(n * waves(chosen, n)), "--max-concurrency", str(n)),
            *("--disable-tqdm", "--save-result", "--result-dir", str(place)),
            *("--result-filename", "theirs.json", *named, *tokenizer),
        ]
    )
    result = json.loads((place / "theirs.json").read_text())
    if result["failed"]:
        raise SystemExit(f"{result['failed']} requests of vLLM's client failed")
    return {"tokens_per_s": result["output_throughput"], "tokens": result["total_output_tokens"]}


def ours(chosen: argparse.Namespace, n: int, place: Path) -> dict[str, Any]:
    """What `fanout sweep` measures at N."""
    run(
        [
            *(FANOUT, "sweep", chosen.url, "-c", str(n), "--waves", str(waves(chosen, n)), "-q"),
            *("--prompt-tokens", str(chosen.prompt_tokens)),
            *("--output-tokens", str(chosen.output_tokens), "--overwrite"),
            *("-o", str(place / "ours"), "--stream" if chosen.stream else "--no-stream"),
            *(["--model", chosen.model] if chosen.model else []),
        ]
    )
    point = json.loads((place / "ours.json").read_text())["sweeps"][0]["points"][0]
    if point["errors"] or point["timeouts"]:
        raise SystemExit(f"requests of fanout sweep failed: {point['errors']}")
    return {"tokens_per_s": point["tokens_per_s"], "tokens": point["tokens"]}


def main() -> None:
    chosen = options()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for n in map(int, chosen.concurrency.split(",")):
            place = Path(folder)
            # Not counted: a server gets its kernels ready when it first sees a batch of a size.
            theirs(chosen, n, place, chosen.turns)
            pairs = []
            for turn in range(chosen.turns):
                if turn % 2:
                    b = theirs(chosen, n, place, turn)
                    pairs.append((ours(chosen, n, place), b))
                else:
                    a = ours(chosen, n, place)
                    pairs.append((a, theirs(chosen, n, place, turn)))
            ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs]
            rows.append(
                {
                    "n": n,
                    "fanout": round(statistics.median(a["tokens_per_s"] for a, _ in pairs), 1),
                    "vllm": round(statistics.median(b["tokens_per_s"] for _, b in pairs), 1),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in ratios],
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps({"rows": rows, "least_ratio": min(row["ratio"] for row in rows)}))


if __name__ == "__main__":
    main()
