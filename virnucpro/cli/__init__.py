"""The commands, one in each file."""

ARGUMENTS = "virnucpro.arguments"
"""Where a click context keeps the words before the command's own, and those."""

SHELLS = ("bash", "zsh", "fish")
"""The shells that --install-completion knows."""
