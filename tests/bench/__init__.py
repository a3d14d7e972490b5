"""Measures the proxy's overhead, as ratios to a bare forwarder on the same core: `python -m tests.bench`."""
