"""What cannot be made a GGUF, and why."""


class Unfit(Exception):
    """An adapter that llama.cpp could not apply as it was trained.  Its text is for whoever trained it."""
