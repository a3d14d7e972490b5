"""Limits of requests, tokens, calls at once and money, by caller, key and model."""

from plugins.limits.plugin import Limits as Limits
