"""Vector stores: OpenAI's API for collections, whose documents are made of files."""
