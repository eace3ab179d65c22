"""Operator forms: places in a graph with several equivalent spellings, and the choice between them."""
