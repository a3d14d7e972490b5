"""One feature each; a plugin never imports another."""
