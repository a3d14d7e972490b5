"""Counts and times of every call, for Prometheus."""

from plugins.metrics.plugin import Metrics as Metrics
