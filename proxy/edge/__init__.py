"""Translates between HTTP and Call/Reply."""
