"""The error for adapters that cannot be converted to GGUF."""


class Unfit(Exception):
    """llama.cpp could not apply the adapter as it was trained; the message is for the person who trained it."""
