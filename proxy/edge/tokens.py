"""Decodes arrays of tokens, which LangChain sends instead of texts."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.errors import BadCall


def _vocabulary() -> Any:
    import bpe_openai  # its wheel contains the vocabulary, which takes most of a second to load

    return bpe_openai.get_encoding("cl100k_base")


async def decoded(lists: list[list[int]], param: str) -> list[str]:
    """Lists of tokens decoded to texts with cl100k_base, the vocabulary of OpenAI's embedding models.

    Raises BadCall if the vocabulary is not installed or a token is not in it.
    """
    try:
        vocabulary = await asyncio.to_thread(_vocabulary)
    except ImportError:
        message = (
            f"'{param}' has tokens, and this server has no vocabulary for them: "
            "send strings, or install gemmapy-proxy[tokens]."
        )
        raise BadCall(message, param=param, code="tokens_not_supported") from None
    try:
        return [str(vocabulary.decode(tokens)) for tokens in lists]
    except (KeyError, OverflowError):
        message = f"Invalid '{param}': a token is not in the vocabulary cl100k_base."
        raise BadCall(message, param=param, code="invalid_token") from None
