"""Stores, indexes and searches documents, and adds matching passages to prompts."""

from plugins.documents.plugin import Documents as Documents
