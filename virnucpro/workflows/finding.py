"""How a prediction finds its frames or stretches: once for the run, and once for its screen."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import FrameRule, PredictConfig
from virnucpro.embedding.jobs import refuse_other_parts, warn_of_cuts
from virnucpro.embedding.models import Model
from virnucpro.errors import count
from virnucpro.runtime.run import Run
from virnucpro.sequences.frame_store import (
    FrameStore,
    StoreSettings,
    open_frame_store,
    prepare_frame_store,
)
from virnucpro.sequences.records import NAME_OF_ROW

logger = logging.getLogger(__name__)


def settings_of_store(config: PredictConfig, rule: FrameRule) -> StoreSettings:
    """Return how the input of a prediction becomes rows by the rule of its classifier."""
    return StoreSettings(
        config.chunk_length_bp, config.min_length_bp, rule, config.paired, config.allow_empty
    )


def find_frames(
    run: Run,
    directory: RunDirectory,
    config: PredictConfig,
    models: Sequence[Model],
    rule: FrameRule,
    precision: str,
    read_before: FrameStore | None = None,
) -> FrameStore:
    """Return the store of the frames or stretches of a run, built or found again.

    Every process of a launch calls this, and the main process builds. If `read_before` is a store
    of the same input, its records are taken, and the input is not read again.

    Raises:
        VirnucproError: The input cannot be read, the store cannot be written, or the directory
            holds parts of another run.
    """
    run.once(
        lambda: prepare_frame_store(
            config.inputs,
            directory.frame_store_dir,
            lambda store: refuse_other_parts(directory, store, models, precision),
            settings_of_store(config, rule),
            read_before,
        )
    )
    # Every process opens it for itself. Only the first reader compared the digests.
    store = open_frame_store(directory.frame_store_dir)
    warn_of_cuts(store, models)
    num_rows = store.num_rows
    num_dna, num_proteins = store.num_distinct("dna"), store.num_distinct("protein")
    if min(num_dna, num_proteins) < num_rows:
        logger.info(
            "%s distinct DNA and %s distinct proteins of %s; equal sequences are embedded once",
            f"{num_dna:,}",
            f"{num_proteins:,}",
            count(num_rows, NAME_OF_ROW[rule.kind]),
        )
    return store
