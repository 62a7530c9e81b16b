"""Everything for the original VirNucPro and its optimized fork: reading, checking and joining.

`pickles` reads `.pt` files, `documents` recognizes what a file is, and `steps` brings it up to the
current format. `joining` decides which rows of many files are taken, `old_runs` knows the old
directories, and `adoption` takes an old run into a new one.
"""
