"""Pure translation between a dialect's JSON and the pipeline's types.  No I/O here."""
