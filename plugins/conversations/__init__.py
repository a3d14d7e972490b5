"""Conversations stored by the server, so that a call sends only its new messages."""

from plugins.conversations.plugin import Conversations as Conversations
