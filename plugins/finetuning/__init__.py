"""Fine-tuning: OpenAI's jobs, a trainer that the operator configures, and the import of the result into Ollama."""

from plugins.finetuning.plugin import FineTuning as FineTuning
