"""Prometheus metrics of one gateway, or of all processes behind its port: then each keeps its values in mapped files
of one folder, and any of them can sum up all. An observation costs 1 us more there."""

import collections
import os
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from gateway.inflight import InFlight
from shared.messages import Finished, FinishReason

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
BUS_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)


class Metrics:
    """Names are the field's, under `tokenbus_`; the label is `model_name`."""

    def __init__(self, summed_in: Path | None = None) -> None:
        """`summed_in`: the folder that was given to `sum_over_processes`."""
        self.registry = CollectorRegistry()
        self._summed_in = summed_in
        self._measured: set[str] = set()  # models that the gauges name
        self._models: dict[str, _OfModel] = {}

        def histogram(name: str, text: str, buckets: tuple[float, ...] = LATENCY_BUCKETS) -> Histogram:
            return Histogram(f"tokenbus_{name}", text, ["model_name"], buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tokenbus_{name}", text, ["model_name", *labels], registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"tokenbus_{name}", text, ["model_name"], registry=self.registry, multiprocess_mode="livesum")

        self.time_to_first_token = histogram("time_to_first_token_seconds", "From acceptance to the first token")
        self.inter_token_latency = histogram("inter_token_latency_seconds", "Mean over one reply", TOKEN_BUCKETS)
        self.e2e_latency = histogram("e2e_request_latency_seconds", "From acceptance to the end")
        self.queue_time = histogram("request_queue_time_seconds", "From acceptance to the claim")
        self.running = gauge("num_requests_running", "Jobs of this gateway that a worker has")
        self.waiting = gauge("num_requests_waiting", "Jobs of this gateway that wait for a worker")
        self.prompt_tokens = counter("prompt_tokens_total", "Prompt tokens")
        self.cached_tokens = counter("prompt_tokens_cached_total", "Prompt tokens that were not computed again")
        self.generation_tokens = counter("generation_tokens_total", "Generated tokens")
        self.success = counter("request_success_total", "Jobs that ended with a finish reason", "finished_reason")
        self.failed = counter("request_failure_total", "Jobs that ended with an error", "code")
        self.refused = counter("request_refused_total", "Requests that were not accepted", "code")
        self.lease_expired = counter("lease_expired_total", "Workers lost while they held jobs of this gateway")
        self.redelivered = counter("job_redelivered_total", "Jobs given to another worker", "reason")
        self.deadletter = counter("deadletter_total", "Jobs given up because their workers died")
        self.fenced = counter("fenced_deltas_total", "Events of old attempts or closed jobs that were ignored")
        self.bus_roundtrip = Histogram(
            "tokenbus_bus_roundtrip_seconds", "One look at the leases", buckets=BUS_BUCKETS, registry=self.registry
        )

    def claimed(self, inflight: InFlight) -> None:
        self._of(inflight.job.model).queue_time.observe(time.monotonic() - inflight.accepted_at)

    def finished(self, inflight: InFlight, event: Finished) -> None:
        of, now = self._of(inflight.job.model), time.monotonic()
        of.success[event.reason].inc()
        of.e2e_latency.observe(now - inflight.accepted_at)
        of.generation_tokens.inc(event.usage.completion_tokens)
        if inflight.job.choice == 0:  # all choices of a request share one prompt
            of.prompt_tokens.inc(event.usage.prompt_tokens)
            of.cached_tokens.inc(event.usage.cached_tokens)
        if inflight.first_token_at is not None and event.usage.completion_tokens:
            of.time_to_first_token.observe(inflight.first_token_at - inflight.accepted_at)
            gaps = event.usage.completion_tokens - 1
            if gaps:
                of.inter_token_latency.observe((now - inflight.first_token_at) / gaps)

    def _of(self, model: str) -> "_OfModel":
        if model not in self._models:
            self._models[model] = _OfModel(self, model)
        return self._models[model]

    def measure(self, open_jobs: Collection[InFlight]) -> None:
        """Bring the gauges up to date."""
        running = collections.Counter(one.job.model for one in open_jobs if one.worker)
        waiting = collections.Counter(one.job.model for one in open_jobs if not one.worker)
        self._measured |= running.keys() | waiting.keys()
        for gauge, counts in ((self.running, running), (self.waiting, waiting)):
            for model in self._measured:  # also down to 0: what a file holds stays there
                gauge.labels(model).set(counts[model])

    def render(self) -> bytes:
        if self._summed_in is None:
            return generate_latest(self.registry)
        sums = CollectorRegistry()
        sums.register(_Sums(self.registry, self._summed_in))
        return generate_latest(sums)


class _OfModel:
    """What every request of a model counts in, looked up once."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.queue_time = metrics.queue_time.labels(model)
        self.e2e_latency = metrics.e2e_latency.labels(model)
        self.time_to_first_token = metrics.time_to_first_token.labels(model)
        self.inter_token_latency = metrics.inter_token_latency.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.cached_tokens = metrics.cached_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.success = {reason: metrics.success.labels(model, reason) for reason in get_args(FinishReason)}


class _Sums(Collector):
    """Over all processes. The library leaves out what nobody has observed yet; a dashboard looks for its name."""

    def __init__(self, own: CollectorRegistry, folder: Path) -> None:
        self._own = own
        self._folder = str(folder)

    def collect(self) -> Iterable[Metric]:
        collector = MultiProcessCollector(None, self._folder)  # type: ignore[no-untyped-call]
        summed = {metric.name: metric for metric in collector.collect()}  # type: ignore[no-untyped-call]
        for metric in self._own.collect():
            yield summed.get(metric.name) or Metric(metric.name, metric.documentation, metric.type)


def sum_over_processes(folder: Path, number: int) -> None:
    """Before a process makes its Metrics. By default the library names its files after process ids; by its number a
    successor goes on counting where the one before it was killed, and files do not pile up."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def forget_process(folder: Path, number: int) -> None:
    """By the process itself, when nobody is left to sum up; the last one removes the folder."""
    for file in folder.glob(f"*_{number}.db"):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
