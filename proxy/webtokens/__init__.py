"""JSON web tokens of an identity provider, checked against its public keys."""
