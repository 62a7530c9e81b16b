"""From files of sequences to chunks and frames, and to the store that keeps them."""
