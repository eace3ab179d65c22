"""Samples: files of rows → feeds of a model."""
