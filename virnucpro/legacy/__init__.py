"""What the original VirNucPro and its optimized fork left: reading, checking and joining it.

`pickles` reads `.pt` files, `reading` tells what a file is, `steps` brings it up to the current
format, `joining` decides which rows of many files are taken, and `runs` knows their directories.
"""
