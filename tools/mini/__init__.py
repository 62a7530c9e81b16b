"""How the small model that ships with virnucpro is made; see README.md."""
