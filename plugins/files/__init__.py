"""Files: what callers upload is kept, so that other features can read it."""

from plugins.files.plugin import Files as Files
