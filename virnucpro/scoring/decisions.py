"""Decides which records are called viral, by which rule, and how sure each call is.

Numbers are rounded before anything is decided. So the numbers in `records.tsv` are the numbers that
decide, and a finished run can be called again from its table alone. Shapes: N records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from virnucpro.backend.arrays import Float64Array, Int64Array
from virnucpro.config import DEFAULT_THRESHOLD, PRESETS, CallsConfig
from virnucpro.errors import ClassifierError
from virnucpro.scoring.calibration import (
    Calibration,
    assume_share,
    choose_threshold,
    estimate_share,
    expect_fdr,
)
from virnucpro.scoring.calls import SCREEN, RecordCalls, Words, make_calls

SIGNIFICANT_DIGITS = 4

# The rule of `confidence`; docs/results.md explains it, tools/measure_confidence.py measures it.
CONFIDENCE_TIERS = ("-", "low", "medium", "high")
HIGH_CONFIDENCE = 0.95
MEDIUM_CONFIDENCE = 0.8
ENOUGH_CHUNKS = 3
"""A call with fewer scored chunks rests on little."""

# With 100 records like a metagenome, the estimate is off by 0.02 (docs/mini.md).
_ENOUGH_FOR_SHARE = 100
MAX_EXPECTED_FDR = 0.2
"""Above it, a warning says that the viral records hold many others."""

# float64 holds no more digits of a share.
_MAX_DECIMALS = 15


@dataclass(frozen=True)
class CallRule:
    """How records were called; run.json has it under `calls`.

    Attributes:
        by: What decides: the probability of a record, or its score.
        threshold: The minimum of a viral record; None if no record may be called viral.
        preset: `relaxed` or `conservative`; None if the run has none.
        max_fdr: The bound on the expected false discovery rate that was asked for; None for none.
        viral_share: The share of viral records that probabilities assume; None without them.
        is_share_estimated: Whether this share was estimated from the scores.
        expected_fdr: The mean of 1 - probability over the viral records; None if unknown.
    """

    by: Literal["probability", "score"]
    threshold: float | None
    preset: str | None
    max_fdr: float | None
    viral_share: float | None
    is_share_estimated: bool
    expected_fdr: float | None

    def describe(self) -> str:
        """Return the rule in a sentence."""
        bound = ""
        if self.max_fdr is not None:
            preset = f"--{self.preset}: " if self.preset else ""
            bound = f" ({preset}bound on the expected false discovery rate {self.max_fdr:g})"
        threshold = (
            f"a record is viral from a {self.by} of {self.threshold:.10g} on"
            if self.threshold is not None
            else "no record may be called viral"
        )
        if self.by == "score":
            return (
                f"calls by score: {threshold}{bound}. The classifier has no calibration, so a "
                "score is not a probability; `virnucpro calibrate` makes one from a labelled run"
            )
        expected = "; no record is called viral"
        if self.expected_fdr is not None:
            expected = (
                f"; expected false discovery rate of the viral records: {self.expected_fdr:.2g}"
            )
        return (
            f"calls by probability: {threshold}{bound}; "
            f"{'estimated' if self.is_share_estimated else 'assumed'} share of viral records "
            f"{self.viral_share:g}{expected}"
        )


class Decision(NamedTuple):
    """The calls of all records.

    Attributes:
        records: The records with rounded numbers and final calls.
        rule: How they were called.
        warnings: What a reader must know before using the calls.
    """

    records: RecordCalls
    rule: CallRule
    warnings: list[str]

    def counts(self) -> dict[str, int]:
        """Return the counts of run.json that the calls decide."""
        calls = Counter(self.records.call.tolist())
        rests_on_little = self.records.num_open_chunks < ENOUGH_CHUNKS
        return {
            "virus": calls["virus"],
            "others": calls["others"],
            "none": calls["none"],
            "virus_few_chunks": int(((self.records.call == "virus") & rests_on_little).sum()),
        }


def check_calibrated(config: CallsConfig, calibration: Calibration | None, path: Path) -> None:
    """Check that the classifier has a calibration if the settings need one.

    Raises:
        ClassifierError: It has none.
    """
    asked = config.name_given("max_fdr", "preset", "viral_share", "estimate_viral_share")
    if asked and calibration is None:
        raise ClassifierError(
            f"{path}: {asked[0]} needs probabilities, and this classifier has no calibration: its "
            "score is not a probability. Choose records by their score (--threshold), give the "
            "classifier a calibration (virnucpro calibrate), or use one that `virnucpro train` made"
        )


def decide_calls(
    records: RecordCalls,
    config: CallsConfig,
    calibration: Calibration | None,
    default_threshold: float | None = None,
    screen_calibration: Calibration | None = None,
    screen_share: float | None = None,
) -> Decision:
    """Return the final calls of N records.

    A calibrated classifier calls by probability, any other by score. What a screen judged is
    `others` by every rule.

    Args:
        records: The records with their scores; their calls and probabilities are replaced.
        config: Which rule to use.
        calibration: Of the classifier; None if it has none.
        default_threshold: The threshold that the classifier states; None if it states none.
        screen_calibration: Of the screen; None if there is none.
        screen_share: The share of viral records that the screen assumed.
    """
    # Rounded first: `virnucpro call` reads rounded scores, and must come to the same calls.
    records = records._replace(score=round_shares(records.score))
    probability, viral_share, suggested = records.probability, None, None
    is_screened = records.judged_by == SCREEN
    if calibration is not None:
        # Only where it may be used: it computes a probability of every record once more.
        if config.viral_share is None:
            suggested = _suggest_share(records, calibration, screen_calibration)
        estimated = suggested if config.estimate_viral_share else None
        viral_share = config.viral_share or estimated or calibration.viral_share
        exact = calibration.probabilities(records.score, records.num_open_chunks, viral_share)
        probability = round_shares(exact)
    if screen_calibration is not None:
        share = config.viral_share or screen_share
        exact = screen_calibration.probabilities(records.score, records.num_open_chunks, share)
        probability = np.where(is_screened, round_shares(exact), probability)
    # What the classifier's file states stands between the user's word and our default.
    usual = DEFAULT_THRESHOLD if default_threshold is None else default_threshold
    threshold = _choose_threshold(config, probability, usual)
    call = make_calls(records.score if calibration is None else probability, threshold)
    # The screen left these out because it is sure. No bound on the rate may call them viral.
    call[is_screened] = "others"
    records = records._replace(
        call=call,
        probability=probability,
        scored_share=np.round(records.scored_share, SIGNIFICANT_DIGITS),
        confidence=rate_confidence(call, probability, records.num_open_chunks),
    )
    rule = CallRule(
        by="score" if calibration is None else "probability",
        threshold=threshold,
        preset=config.preset,
        max_fdr=config.max_fdr if config.preset is None else PRESETS[config.preset],
        viral_share=viral_share,
        is_share_estimated=bool(config.estimate_viral_share) and suggested is not None,
        expected_fdr=None if calibration is None else expect_fdr(probability, call == "virus"),
    )
    return Decision(records, rule, list(_warn(records, rule, config, suggested)))


def round_shares(value: Float64Array) -> Float64Array:
    """Return numbers from 0 to 1 with 4 significant digits of their distance to 0 or to 1.

    0.123456 becomes 0.1235, and 0.99987654 becomes 0.9998765: only the distance to 1 tells how
    sure that is. No number crosses 0.5, where the original changes its call; a number that would
    cross it keeps all digits. Rounding twice changes nothing.
    """
    # log10 of 0 is minus infinity, which the limits below handle.
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.floor(np.log10(np.minimum(value, 1 - value)))
    decimals = np.clip(SIGNIFICANT_DIGITS - 1 - magnitude, 0, _MAX_DECIMALS)
    scale = 10.0 ** np.where(np.isnan(decimals), 0, decimals)
    rounded = np.rint(value * scale) / scale
    return np.where((rounded >= 0.5) == (value >= 0.5), rounded, value)


def rate_confidence(call: Words, probability: Float64Array, num_open_chunks: Int64Array) -> Words:
    """Return `high`, `medium` or `low` for each call; `-` without a call or a probability.

    The rule reads the probability that the call is right: `probability` of a viral record, and
    1 - `probability` of any other. `high` needs 0.95 and three scored chunks, `medium` needs 0.8.
    """
    is_right = np.where(call == "virus", probability, 1 - probability)
    is_high = (is_right >= HIGH_CONFIDENCE) & (num_open_chunks >= ENOUGH_CHUNKS)
    tiers: Words = np.array(CONFIDENCE_TIERS, dtype=object)
    has_tier = (call != "none") & ~np.isnan(probability)
    found: Words = tiers[has_tier * (1 + (is_right >= MEDIUM_CONFIDENCE) + is_high)]
    return found


def _choose_threshold(config: CallsConfig, probability: Float64Array, usual: float) -> float | None:
    if config.max_fdr is not None:
        return choose_threshold(probability, config.max_fdr)
    if config.preset is None:
        return usual if config.threshold is None else config.threshold
    found = choose_threshold(probability, PRESETS[config.preset])
    # Each preset moves the usual threshold in one direction only, so the presets keep their order.
    if config.preset == "relaxed":
        return usual if found is None else min(usual, found)
    return None if found is None else max(usual, found)


def _suggest_share(
    records: RecordCalls, calibration: Calibration, screen_calibration: Calibration | None
) -> float | None:
    """Return the share of viral records that the scores suggest; None for too few records."""
    # Half, because two calibrations may assume different shares.
    probability = calibration.probabilities(records.score, records.num_open_chunks, 0.5)
    if screen_calibration is not None:
        by_screen = screen_calibration.probabilities(records.score, records.num_open_chunks, 0.5)
        probability = np.where(records.judged_by == SCREEN, by_screen, probability)
    known = probability[~np.isnan(probability)]
    if len(known) < _ENOUGH_FOR_SHARE:
        return None
    # Never rounded to 0 or to 1, under which every record would have the same probability.
    return float(round_shares(np.array(estimate_share(known, 0.5))))


def _warn(
    records: RecordCalls, rule: CallRule, config: CallsConfig, suggested: float | None
) -> Iterator[str]:
    if config.estimate_viral_share and rule.viral_share is not None and suggested is None:
        yield (
            f"the share of viral records is not estimated, because fewer than {_ENOUGH_FOR_SHARE} "
            f"records have a probability; the probabilities assume {rule.viral_share:g}"
        )
    if not (records.call == "virus").any():
        yield f"no record is called viral: {_explain_nothing(records, rule)}"
    elif rule.expected_fdr is None or rule.viral_share is None:
        return
    elif rule.expected_fdr > MAX_EXPECTED_FDR:
        yield (
            f"the expected false discovery rate of the viral records is {rule.expected_fdr:.2g}: "
            "that share of them is probably not viral. Call fewer records (--max-fdr, "
            "--conservative, or a higher --threshold)"
        )
    elif suggested is not None:
        of_viral = records.probability[records.call == "virus"]
        found = float((1 - assume_share(of_viral, rule.viral_share, suggested)).mean())
        if found > MAX_EXPECTED_FDR:
            yield (
                f"the probabilities assume that {100 * rule.viral_share:.3g} % of all records are "
                f"viral, but the scores suggest about {100 * suggested:.2g} %. With that share, "
                f"the expected false discovery rate of the viral records is {found:.2g}, and not "
                f"{rule.expected_fdr:.2g}. Give the share that you expect in your sample "
                "(--viral-share), or --estimate-viral-share"
            )


def _explain_nothing(records: RecordCalls, rule: CallRule) -> str:
    if not len(records.call):
        return "the input has no records"
    value = records.score if rule.by == "score" else records.probability
    if np.isnan(value).all():
        reasons = Counter(records.reason.tolist())
        listed = ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))
        return f"no record has a score ({listed})"
    best = float(np.nanmax(value))
    if rule.threshold is None:
        return (
            f"even the record with the highest probability ({best:.10g}) has an expected false "
            f"discovery rate above {rule.max_fdr:g}"
        )
    return f"the highest {rule.by} is {best:.10g}, and the threshold is {rule.threshold:.10g}"
