"""The innermost handlers: where models live."""
