"""Ollama's error messages, verbatim."""

import orjson

BUSY = "server busy, please try again.  maximum pending requests exceeded"
CANCELED = "request canceled"
CLOUD_OFF = "ollama cloud is disabled: remote model is unavailable"
TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "adjust the context length in settings, or use a model with a longer context length"
)
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
NO_IMAGES = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
NO_MULTIMODAL = "Multimodal data provided, but model does not support multimodal requests."
PREFILL = "Cannot have 2 or more assistant messages at the end of the list."
NO_LOGPROBS = "logprobs is not supported with tools + stream"


class Refused(Exception):
    """An answer with an error status and the body `{"error": message}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def nested(status: int, message: str, kind: str = "invalid_request_error", **more: int) -> Refused:
    """An error of the model's own server, whose JSON Ollama uses as the text of its error."""
    inner = {"error": {"code": status, "message": message, "type": kind, **more}}
    return Refused(status, orjson.dumps(inner).decode())


def exceeded(tokens: int, room: int) -> Refused:
    message = f"request ({tokens} tokens) exceeds the available context size ({room} tokens), try increasing it"
    return nested(400, message, "exceed_context_size_error", n_prompt_tokens=tokens, n_ctx=room)
