"""Conversations that the server remembers, so that a call need only bring what is new."""

from plugins.conversations.plugin import Conversations as Conversations
