"""The innermost handlers of every chain: they send calls to model servers."""
