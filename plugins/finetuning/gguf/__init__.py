"""Converts PEFT's adapters to GGUF, the format that Ollama and llama.cpp read.

It is independent of jobs.  Both formats are a header and raw numbers, so numpy is all it needs.
"""
