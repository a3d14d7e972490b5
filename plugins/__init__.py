"""One feature per plugin; a plugin never imports another."""
