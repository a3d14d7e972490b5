"""Prompts with names: a library, folders of files, and callers' own, filled with checked variables."""

from plugins.templates.plugin import Templates as Templates
