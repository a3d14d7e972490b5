"""JSON Web Tokens of an identity provider, verified with its public keys."""
