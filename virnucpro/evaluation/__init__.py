"""How well calls agree with the truth: figures with confidence intervals, tables and plots."""
