"""Experiments: calls are split among variants, and the results are valid however often they are looked at."""

from plugins.experiments.plugin import Experiments as Experiments
