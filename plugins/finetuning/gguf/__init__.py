"""Adapters of PEFT as GGUF, which is what Ollama and llama.cpp read.

Nothing here knows of jobs.  Both formats are a header and raw numbers, so that numpy is all that it takes.
"""
