"""DNABERT-S: the DNA language model, from its published files and without their code."""
