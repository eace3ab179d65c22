"""Hostile files, kills at random moments and odd environments against the command line."""
