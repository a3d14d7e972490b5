"""Users and their API keys, kept in the database."""
