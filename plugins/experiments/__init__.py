"""Experiments: calls split over variants, and results that may be looked at any time."""

from plugins.experiments.plugin import Experiments as Experiments
