"""Watching a run: what each process does is counted, published, judged and read back."""

from virnucpro.monitoring.status import PassStatus, Place, ProgressListener, Sample

__all__ = ["PassStatus", "Place", "ProgressListener", "Sample"]
