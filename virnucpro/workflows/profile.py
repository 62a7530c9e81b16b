"""`virnucpro profile`: how fast a model is, by the number of tokens in a batch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from virnucpro.config import ComputeConfig, ProfileConfig
from virnucpro.embedding.budgets import BudgetKey
from virnucpro.embedding.measuring import Speed, fill_batch, make_sequences, measure_encoder
from virnucpro.embedding.models import Model, open_model
from virnucpro.errors import InputError, MemoryExhaustedError
from virnucpro.runtime.devices import device_name, is_out_of_memory
from virnucpro.runtime.run import Run, open_run
from virnucpro.sequences.fasta import RecordReader

logger = logging.getLogger(__name__)

MAX_BUDGETS = {"cuda": 131_072, "cpu": 8_192}
"""Where doubling ends, by kind of device."""

_LENGTH_BP = 500
_SECONDS_PER_BUDGET = 1.0
_MAX_RECORDS = 10_000

# Smaller batches need less memory and end at more equal times, so a larger one must gain something.
_AS_GOOD_AS_THE_BEST = 0.99


@dataclass(frozen=True)
class BudgetProfile:
    """How fast a model is, by the number of tokens in a batch.

    Attributes:
        key: What was measured, and on which device.
        speeds: The speed with each budget, rising.
    """

    key: BudgetKey
    speeds: dict[int, Speed]

    @property
    def best(self) -> int:
        """The smallest budget that is at most 1 % slower than the fastest."""
        max_speed = max(speed.tokens_per_s for speed in self.speeds.values())
        return next(
            batch_tokens
            for batch_tokens, speed in self.speeds.items()
            if speed.tokens_per_s >= _AS_GOOD_AS_THE_BEST * max_speed
        )


def list_budgets(
    device_type: str,
    min_batch_tokens: int,
    max_batch_tokens: int | None = None,
    step_tokens: int | None = None,
) -> list[int]:
    """Return the budgets to measure, rising.

    Args:
        device_type: A key of `MAX_BUDGETS`.
        min_batch_tokens: The first budget.
        max_batch_tokens: The limit; None for the device's limit.
        step_tokens: From one budget to the next; None to double each time.
    """
    limit = max_batch_tokens or max(min_batch_tokens, MAX_BUDGETS[device_type])
    # The fork went up in equal steps. Doubling covers the same range in a few.
    if step_tokens is not None:
        return list(range(min_batch_tokens, limit + 1, step_tokens))
    doubled = (min_batch_tokens << exponent for exponent in itertools.count())
    return list(itertools.takewhile(lambda budget: budget <= limit, doubled))


def profile_budgets(config: ProfileConfig, compute: ComputeConfig, location: str) -> BudgetProfile:
    """Measure one model in batches of rising size, up to one that does not fit the memory.

    Args:
        config: Which model and which budgets to measure, and with which sequences.
        compute: How to compute, and on which device.
        location: The weights of the model.

    Raises:
        MemoryExhaustedError: Even the smallest batch does not fit the memory.
        VirnucproError: The settings, the weights or the sequences cannot be used.
    """
    with open_run(compute) as run:
        model = open_model(config.backend, location, run)
        speeds: dict[int, Speed] = {}
        try:
            for batch_tokens, speed in _measure(run, model, config):
                # Kept one by one: a budget that exceeds the memory must not lose those before.
                speeds[batch_tokens] = speed
                logger.info("measured batches of %s tokens", f"{batch_tokens:,}")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if not speeds:
            raise MemoryExhaustedError(
                f"{model.name}: the weights and a batch of {config.min_batch_tokens} tokens do not "
                f"fit the memory of {run.device}; use a device with more, or a smaller "
                "--min-batch-tokens"
            )
        place = (device_name(run.device), model.name, model.weights.embedding_dim)
        precision = model.compute_precision(run.precision)
        return BudgetProfile(BudgetKey(*place, precision, config.attention), speeds)


def _measure(run: Run, model: Model, config: ProfileConfig) -> Iterator[tuple[int, Speed]]:
    """Yield each budget with its speed; the sequences of a short file are repeated."""
    given: list[str] = []
    if config.test_file is not None:
        records = itertools.islice(
            RecordReader(config.test_file, model.alphabet, judge_alphabet=True), _MAX_RECORDS
        )
        # Models read upper-case letters: others would give other tokens, and another speed.
        given = [record.sequence.upper() for record in records if record.sequence]
        if not given:
            raise InputError(
                f"{config.test_file}: holds empty records only; give some with sequences"
            )
    encoder = model.load_encoder(run.device, run.precision, run.config.attention)
    limits = config.min_batch_tokens, config.max_batch_tokens, config.step_tokens
    for batch_tokens in list_budgets(run.device.type, *limits):
        # Begun anew for each budget, so that all budgets are measured on the same sequences.
        random_ones = make_sequences(model.alphabet, _LENGTH_BP)
        batch = fill_batch(model, itertools.cycle(given) if given else random_ones, batch_tokens)
        yield batch_tokens, measure_encoder(encoder, batch, run.device, _SECONDS_PER_BUDGET)
