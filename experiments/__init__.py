"""Experiments behind docs/results: what they train, one driver, and the pages made from what it keeps."""
