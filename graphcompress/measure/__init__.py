"""Differences of outputs, calibration, times, metrics."""
