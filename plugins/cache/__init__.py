"""Answers that were given before, and one generation for all who ask the same at once."""

from plugins.cache.plugin import Cache as Cache
