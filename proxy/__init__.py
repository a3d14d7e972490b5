"""An OpenAI-compatible reverse proxy for Ollama."""

__version__ = "0.1.0"
