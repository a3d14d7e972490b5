"""Named prompts, filled with checked variables: from the packaged library, folders of files, and callers."""

from plugins.templates.plugin import Templates as Templates
