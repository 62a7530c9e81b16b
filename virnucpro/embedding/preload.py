"""Imported by the process from which the loader's workers are forked, and by nothing else."""

import atexit
import os
import signal

from virnucpro.runtime.orphans import end_with_parent

# Only while it imports, which takes seconds. Later it notices by itself that its clients are gone.
# And the kernel takes the end of the thread that started it for the end of the parent.
end_with_parent(signal.SIGKILL)

import virnucpro.embedding.loader  # noqa: E402, F401

end_with_parent(0)
# Taking torch apart takes seconds, and there is nothing to clean up.
atexit.register(os._exit, 0)
