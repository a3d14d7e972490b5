"""Vector stores: collections in OpenAI's words, whose documents are made of files."""
