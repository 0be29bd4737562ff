"""Metrics of the server, in Prometheus's text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histograms' buckets, seconds."""


class ServerMetrics:
    """Counters, gauges and histograms of one server, in their own registry."""

    def __init__(self):
        self._registry = CollectorRegistry()
        self.requests = Counter("llaso_requests", "Requests answered", ("endpoint", "status"), registry=self._registry)
        self.request_seconds = Histogram(
            "llaso_request_seconds",
            "From a request's first byte to its answer's last",
            ("endpoint",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.first_token_seconds = Histogram(
            "llaso_first_token_seconds",
            "From a request's arrival to its answer's first text (streams)",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.prompt_tokens = Counter("llaso_prompt_tokens", "Tokens read, audio included", registry=self._registry)
        self.audio_seconds = Counter("llaso_audio_seconds", "Audio read", registry=self._registry)
        self.answer_tokens = Counter("llaso_answer_tokens", "Tokens written", registry=self._registry)
        self.disconnected = Counter("llaso_departed", "Clients that left before their answer", registry=self._registry)
        self.running = Gauge("llaso_running", "Requests in the batch", registry=self._registry)
        self.waiting = Gauge("llaso_waiting", "Requests waiting for the batch", registry=self._registry)
        self.live = Gauge("llaso_live_sessions", "Live transcriptions that are open", registry=self._registry)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
