"""Measurements, each behind a `make bench-…`; never part of the tests."""
