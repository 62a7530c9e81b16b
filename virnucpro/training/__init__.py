"""Trains a classifier: labelled records, splits, the fit of the head, and held-out fragments."""
