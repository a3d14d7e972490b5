"""Files that callers upload, stored so that other features can read them."""

from plugins.files.plugin import Files as Files
