"""`/metrics` of the simulator under vLLM's names; all times in wall seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fanout.sim.engine import Gauges

# Buckets as in vLLM's source.
_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_LABELS = ("model_name", "engine")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Histograms that are fed, gauges and counters that are read when somebody asks.

    Args:
        model: label of all of them.
        gauges: the engine's load now.
    """

    def __init__(self, model: str, gauges: Callable[[], Gauges]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Load(model, gauges))
        labels = (model, "0")

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(name, what, _LABELS, buckets=buckets, registry=self._registry)
            return made.labels(*labels)

        self._ttft = histogram(
            "vllm:time_to_first_token_seconds", "Time to first token in seconds.", _TTFT
        )
        self._itl = histogram(
            "vllm:inter_token_latency_seconds", "Mean inter-token latency of a request.", _ITL
        )
        self._e2e = histogram(
            "vllm:e2e_request_latency_seconds", "End-to-end request latency in seconds.", _REQUEST
        )
        self._queue = histogram(
            "vllm:request_queue_time_seconds", "Time spent in WAITING phase.", _REQUEST
        )

    def finished(self, queue_s: float, ttft_s: float, itl_s: float | None, e2e_s: float) -> None:
        """Count one finished request."""
        self._queue.observe(queue_s)
        self._ttft.observe(ttft_s)
        self._e2e.observe(e2e_s)
        if itl_s is not None:
            self._itl.observe(itl_s)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _Load(Collector):
    def __init__(self, model: str, gauges: Callable[[], Gauges]) -> None:
        self._values = [model, "0"]
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        now = self._gauges()
        for name, what, value in (
            ("num_requests_running", "Requests in model execution batches.", now.running),
            ("num_requests_waiting", "Requests waiting to be processed.", now.waiting),
            ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", now.kv_use),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", what, labels=_LABELS)
            gauge.add_metric(self._values, value)
            yield gauge
        for name, what, total in (
            ("num_preemptions", "Cumulative number of preemptions.", now.preemptions),
            ("prompt_tokens", "Number of prefill tokens processed.", now.prompt_tokens),
            ("generation_tokens", "Number of generation tokens processed.", now.generation_tokens),
            ("prefix_cache_queries", "Prefix cache queries, in queried tokens.", 0),
            ("prefix_cache_hits", "Prefix cache hits, in cached tokens.", 0),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", what, labels=_LABELS)
            counter.add_metric(self._values, total)
            yield counter
        done = CounterMetricFamily(
            "vllm:request_success",
            "Count of successfully processed requests.",
            labels=(*_LABELS, "finished_reason"),
        )
        for reason, count in now.finished.items():
            done.add_metric([*self._values, reason], count)
        yield done
