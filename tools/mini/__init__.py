"""The small model that ships with virnucpro: its training data, networks, training and figures."""
