"""Pure translation between a dialect's JSON and the nouns of the pipeline.  No I/O here."""
