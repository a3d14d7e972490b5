"""Sends one question to several models and compares the answers."""

from plugins.comparison.plugin import Comparison as Comparison
