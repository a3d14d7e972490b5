"""A simulated Ollama server: the wire of the real one, without a model and with faults on demand."""

from .answers import Said
from .calls import Seen
from .faults import Fault
from .models import CATALOGUE, Model
from .running import running, simulate
from .simulator import Simulator

__all__ = ["CATALOGUE", "Fault", "Model", "Said", "Seen", "Simulator", "running", "simulate"]
