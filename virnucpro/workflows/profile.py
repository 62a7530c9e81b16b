"""Finding the token budget that is fastest for a model on a device."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from virnucpro.backend.interface import TokenBatch
from virnucpro.config import ComputeConfig
from virnucpro.embedding.budgets import BudgetKey
from virnucpro.embedding.measuring import Speed, fill_batch, make_sequences, measure_encoder
from virnucpro.embedding.models import Model, open_model
from virnucpro.errors import InputError, MemoryExhaustedError, UsageError
from virnucpro.runtime.devices import device_name, is_out_of_memory
from virnucpro.runtime.run import Run, open_run
from virnucpro.sequences.fasta import RecordReader

logger = logging.getLogger(__name__)

LARGEST_BUDGETS = {"cuda": 131_072, "cpu": 8_192}
"""Where doubling ends, by kind of device."""

_LENGTH_BP = 500
_SECONDS_PER_BUDGET = 1.0
_MOST_RECORDS = 10_000

# Smaller batches take less memory and end more evenly, so a larger one has to gain something.
_AS_GOOD_AS_THE_BEST = 0.99


@dataclass(frozen=True)
class BudgetRange:
    """Which budgets to try, in tokens.

    Attributes:
        smallest: The first.
        largest: Where to stop; None for the device's of `LARGEST_BUDGETS`.
        step: From one to the next; None for twice the last.

    Raises:
        UsageError: The largest is smaller than the smallest.
    """

    smallest: int
    largest: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if self.largest is not None and self.largest < self.smallest:
            raise UsageError(
                f"batches of {self.smallest} to {self.largest} tokens: the largest has to be at "
                "least the smallest"
            )

    def list_for(self, device_type: str) -> list[int]:
        """Return the budgets, rising."""
        largest = self.largest or max(self.smallest, LARGEST_BUDGETS[device_type])
        if self.step is not None:
            return list(range(self.smallest, largest + 1, self.step))
        doubled = (self.smallest << exponent for exponent in itertools.count())
        return list(itertools.takewhile(lambda budget: budget <= largest, doubled))


@dataclass(frozen=True)
class BudgetProfile:
    """How fast a model is by the tokens in a batch.

    Attributes:
        key: What was measured, and on what.
        speeds: By budget, rising.
    """

    key: BudgetKey
    speeds: dict[int, Speed]

    @property
    def best(self) -> int:
        """The smallest budget that is as fast as any, but for a hundredth."""
        fastest = max(speed.tokens_per_s for speed in self.speeds.values())
        return next(
            budget_tokens
            for budget_tokens, speed in self.speeds.items()
            if speed.tokens_per_s >= _AS_GOOD_AS_THE_BEST * fastest
        )


def profile_budgets(
    config: ComputeConfig,
    backend_name: str,
    location: str,
    wanted: BudgetRange,
    test_path: Path | None = None,
) -> BudgetProfile:
    """Measure one backend with its weights in batches of rising size.

    Args:
        config: What to compute on, and how.
        backend_name: For example `esm2`.
        location: Of its weights.
        wanted: The budgets; what does not fit the device's memory ends them early.
        test_path: Sequences to measure on; None for random open frames of 500 bp.

    Raises:
        MemoryExhaustedError: Not even the smallest batch fits.
        VirnucproError: The settings, the weights or the sequences cannot be used.
    """
    with open_run(config) as run:
        return _measure(run, open_model(backend_name, location, run), wanted, test_path)


def _measure(run: Run, model: Model, wanted: BudgetRange, test_path: Path | None) -> BudgetProfile:
    device = run.device
    batches = _make_batches(model, wanted.list_for(device.type), test_path)
    speeds: dict[int, Speed] = {}
    try:
        encoder = model.load_encoder(device, run.precision, run.config.attention)
        for budget_tokens, batch in batches:
            speeds[budget_tokens] = measure_encoder(encoder, batch, device, _SECONDS_PER_BUDGET)
            logger.info("measured batches of %d tokens", budget_tokens)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    if not speeds:
        raise MemoryExhaustedError(
            f"{model.name}: the weights and a batch of {wanted.smallest} tokens do not fit the "
            f"memory of {device}; use a device with more, or a smaller --min-batch"
        )
    place = (device_name(device), model.name, model.weights.embedding_dim)
    precision = model.compute_precision(run.precision)
    return BudgetProfile(BudgetKey(*place, precision, run.config.attention), speeds)


def _make_batches(
    model: Model, budgets: Iterable[int], test_path: Path | None
) -> Iterator[tuple[int, TokenBatch]]:
    """Yield each budget with a batch that fills it; sequences of a file repeat if they are few."""
    collator = model.load_collator()
    given: list[str] = []
    if test_path is not None:
        records = itertools.islice(RecordReader(test_path, model.alphabet), _MOST_RECORDS)
        given = [record.sequence.upper() for record in records if record.sequence]
        if not given:
            raise InputError(f"{test_path}: holds empty records only; give some with sequences")
    for budget_tokens in budgets:
        random_ones = make_sequences(model.alphabet, _LENGTH_BP)
        sequences = itertools.cycle(given) if given else random_ones
        yield budget_tokens, fill_batch(model.backend, collator, sequences, budget_tokens)
