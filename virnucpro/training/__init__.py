"""Training a classifier: what it learns from, the splits, the fit, the calibration, the report."""
