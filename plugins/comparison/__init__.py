"""One question to several models, side by side."""

from plugins.comparison.plugin import Comparison as Comparison
