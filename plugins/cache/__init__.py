"""Caching of answers; equal calls at the same time share one generation."""

from plugins.cache.plugin import Cache as Cache
