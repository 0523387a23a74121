"""Text for a model to read: documents of a corpus, and rows of tokens made of them."""
