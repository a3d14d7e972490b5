"""Retries of calls that failed before their first event, within a budget."""

from plugins.retry.plugin import Retry as Retry
