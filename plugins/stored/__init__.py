"""Answers that their callers can read again and go on from: responses, and chat completions."""

from plugins.stored.plugin import Stored as Stored
