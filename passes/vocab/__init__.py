"""Rows of the word embedding, and of the head, that the data never look up are dropped."""
