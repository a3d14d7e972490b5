"""Stored answers that callers can read again and continue: responses and chat completions."""

from plugins.stored.plugin import Stored as Stored
