"""What the proxy costs, as ratios to a bare forwarder on the same core: `python -m tests.bench`."""
