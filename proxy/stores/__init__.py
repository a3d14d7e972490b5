"""Where features keep what must outlive a call; each kind has one contract and several implementations."""
