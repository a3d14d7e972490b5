"""Counters and durations of every call, for Prometheus."""

from plugins.metrics.plugin import Metrics as Metrics
