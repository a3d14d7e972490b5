"""Stores for data that outlives a call; each kind has one contract and several implementations."""
