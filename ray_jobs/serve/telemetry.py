"""What is kept of requests: counts and times for Prometheus, and a row each in the request log."""

from monitoring.request_log import RequestLogWriter


class Telemetry:
    """Of one router."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._log = RequestLogWriter()
        self._registry = CollectorRegistry()
        self._requests = Counter("unimed_requests", "Requests by route, arm and status", ["route", "arm", "status"], registry=self._registry)
        self._latency = Histogram("unimed_request_seconds", "Time to the last byte", ["route"], registry=self._registry)

    def add(self, row: dict) -> None:
        """Keep a request, as a row of the request log tells it."""
        self._requests.labels(row["route"], row["arm"], row["status"]).inc()
        self._latency.labels(row["route"]).observe(row["latency_ms"] / 1000)
        self._log.add(row)

    def exposition(self) -> tuple[bytes, str]:
        """Counts and times in Prometheus' text format, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
