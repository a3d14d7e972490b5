"""Fine-tuning: OpenAI's jobs over files, a trainer that the operator names, and the model brought to Ollama."""

from plugins.finetuning.plugin import FineTuning as FineTuning
