"""The last act of `make demo`: draw with the two trained models, measure, tell."""
