"""Turns the scores of records into probabilities, and these into expected false discovery rates.

A score is the mean over the open chunks of a record. A mean over more chunks is more certain: 0.8
over 20 chunks says more than 0.8 over one. So the slope of Platt scaling (J. C. Platt, 1999) grows
with the number of chunks, and the offset changes with it:

    logit P = (slope + slope_growth * n) * logit(score) + offset + offset_growth * n
    n = ln(open chunks)

Shapes: N records, K coefficients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from virnucpro.backend.arrays import BoolArray, Float64Array, Int64Array

# Scores are made of float32, which cannot tell a value nearer to 0 or 1 from these.
_MIN_SCORE = 2.0**-24
# The penalty keeps the coefficients finite and changes them only in late digits.
_RIDGE = 1e-6
# How far the two growths are from 0 in a usual classifier. Records of nearly one length say nothing
# about them, and a few odd ones would decide the probabilities of all other lengths.
_USUAL_GROWTH = 1.0
_MAX_STEPS = 100
# Records that are enough to estimate the share of viral ones.
_MAX_FOR_SHARE = 100_000


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns the scores of one classifier into probabilities; part of the classifier's file.

    Attributes:
        slope: The factor of the logit of a score over one chunk; not negative.
        slope_growth: What is added to the slope for each unit of ln(open chunks); not negative.
        offset: What is added to the logit of a record of one chunk.
        most_chunks: The maximum of open chunks in the records of the fit. Records with more chunks
            count as if they had this number.
        viral_share: The share of viral records that the probabilities assume.
        offset_growth: What is added to the offset for each unit of ln(open chunks): a mean over
            more chunks may lean to one side.

    Raises:
        ValueError: A number is impossible.
    """

    slope: float
    slope_growth: float
    offset: float
    most_chunks: int
    viral_share: float = 0.5
    offset_growth: float = 0.0

    def __post_init__(self) -> None:
        slopes = (self.slope, self.slope_growth)
        if not all(math.isfinite(number) for number in (*slopes, self.offset, self.offset_growth)):
            raise ValueError(f"a calibration with numbers that are not finite: {self}")
        if min(slopes) < 0 or self.most_chunks < 1 or not 0 < self.viral_share < 1:
            raise ValueError(f"a calibration with numbers out of range: {self}")

    @property
    def ignores_scores(self) -> bool:
        """Whether the records of the fit had scores that do not tell viral ones from others."""
        # A fit takes out each factor that would be negative.
        return self.slope == self.slope_growth == 0

    def probabilities(
        self, score: Float64Array, num_open_chunks: Int64Array, viral_share: float | None = None
    ) -> Float64Array:
        """Return float64 (N,): the probability that each record is viral; NaN without a score.

        Args:
            score: float64 (N,), the scores of the records; NaN without a call.
            num_open_chunks: int64 (N,), the chunks behind each score.
            viral_share: The share of viral records among the scored ones; None for the share that
                the calibration assumes.
        """
        # Beyond the chunks of the fit, nobody has seen how certain a mean is.
        inputs_NK = _make_inputs(score, np.minimum(num_open_chunks, self.most_chunks))
        # Not a matrix product: the last bits of its sums depend on the number of records.
        factors = [self.slope, self.slope_growth, self.offset, self.offset_growth]
        logits_N = (inputs_NK * factors).sum(1)
        # Another share of viral records shifts the prior odds, and so all logits alike.
        if viral_share is not None:
            logits_N += logit(viral_share) - logit(self.viral_share)
        return _sigmoid(logits_N)


def fit_calibration(
    score: Float64Array,
    num_open_chunks: Int64Array,
    is_viral: BoolArray,
    weights: Float64Array | None = None,
) -> Calibration:
    """Return a calibration, fitted to records that the classifier was not trained on.

    Viral records and others have the same total weight, whatever their numbers, so the
    probabilities assume a viral share of 0.5. The targets are Platt's: 1 / (n + 2) away from 0 and
    1. They keep the slope finite if the scores separate the classes without a mistake.

    Args:
        score: float64 (N,), without NaN.
        num_open_chunks: int64 (N,), at least 1.
        is_viral: bool (N,), the truth; both kinds must occur.
        weights: float64 (N,), the weight of each record within its kind; None for equal weights.
    """
    weights_N = np.ones(len(score)) if weights is None else weights
    balanced_N = np.where(
        is_viral, weights_N / weights_N[is_viral].sum(), weights_N / weights_N[~is_viral].sum()
    )
    margin_N = 1 / (np.where(is_viral, is_viral.sum(), (~is_viral).sum()) + 2)
    targets_N = np.where(is_viral, 1 - margin_N, margin_N)
    inputs_NK = _make_inputs(score, num_open_chunks)
    # A normal distribution of the growths, which weighs as much as one record. So it decides where
    # the records say nothing, and thousands of records hardly feel it.
    num_records = 4 / (balanced_N**2).sum()
    penalty_K = np.array([0.0, 1.0, 0.0, 1.0]) / (2 * _USUAL_GROWTH**2 * num_records)
    used_K = np.ones(inputs_NK.shape[1], np.bool_)
    while True:
        coefficients_K = np.zeros(len(used_K))
        coefficients_K[used_K] = _fit_logistic(
            inputs_NK[:, used_K], targets_N, balanced_N / 2, penalty_K[used_K]
        )
        # A higher score must never make a record less viral, nor more chunks flatten the slope.
        worst = int(coefficients_K[:2].argmin())
        if coefficients_K[worst] >= 0:
            slope, slope_growth, offset, offset_growth = coefficients_K.tolist()
            most_chunks = int(num_open_chunks.max())
            return Calibration(
                slope, slope_growth, offset, most_chunks, offset_growth=offset_growth
            )
        # The fit begins again without this factor, because the others depend on it.
        used_K[worst] = False


def choose_threshold(probability: Float64Array, max_fdr: float) -> float | None:
    """Return the lowest threshold with an expected false discovery rate of at most `max_fdr`.

    None means that not even the most probable record may be called viral.

    Args:
        probability: float64 (N,); records without a call have NaN and are left out.
        max_fdr: The maximum rate, from 0 to 1.
    """
    descending = np.sort(probability[~np.isnan(probability)])[::-1]
    # The expected false ones among the first n records, divided by n, for each n at once.
    rates = np.cumsum(1 - descending) / np.arange(1, len(descending) + 1)
    # Equal probabilities are called together or not at all, so only the last one may end a list.
    is_last = np.append(descending[1:] < descending[:-1], True)[: len(descending)]
    allowed = np.flatnonzero(is_last & (rates <= max_fdr))
    return float(descending[allowed[-1]]) if len(allowed) else None


def expect_fdr(probability: Float64Array, is_called: BoolArray) -> float | None:
    """Return the expected share of others among the called records; None if there are none."""
    return float((1 - probability[is_called]).mean()) if is_called.any() else None


def estimate_share(probability: Float64Array, assumed: float) -> float:
    """Return the share of viral records under which the probabilities are likeliest.

    This is the share that the EM algorithm of M. Saerens and others (2002) finds.

    Args:
        probability: float64 (N,), without NaN; N is at least 1.
        assumed: The share of viral records that these probabilities assume.
    """
    # So many tell it as well as millions do.
    some_N = probability[:: 1 + len(probability) // _MAX_FOR_SHARE]
    # How much likelier the score of a record is if the record is viral, minus 1.
    excess_N = np.exp(logit(some_N.clip(_MIN_SCORE, 1 - _MIN_SCORE)) - logit(assumed)) - 1
    # A smaller share would be less than one record.
    low, high = 1 / (len(some_N) + 1), 1 - 1 / (len(some_N) + 1)
    while high - low > 1e-6:
        middle = (low + high) / 2
        # The likelihood has one maximum, and this is its slope.
        if (excess_N / (1 + middle * excess_N)).sum() > 0:
            low = middle
        else:
            high = middle
    return low


def assume_share(probability: Float64Array, assumed: float, share: float) -> Float64Array:
    """Return float64 (N,): probabilities that assume `share` where they assumed another share."""
    # The prior odds change, and so all logits alike.
    with np.errstate(divide="ignore"):
        return _sigmoid(logit(probability) - logit(assumed) + logit(share))


def _make_inputs(score: Float64Array, num_open_chunks: Int64Array) -> Float64Array:
    """Return float64 (N, 4): the factors of slope, slope growth, offset and offset growth."""
    logits_N = logit(np.clip(score, _MIN_SCORE, 1 - _MIN_SCORE))
    # A record without open chunks has no score. The 1 only keeps its logarithm finite.
    log_chunks_N = np.log(np.maximum(num_open_chunks, 1))
    columns = (logits_N, logits_N * log_chunks_N, np.ones(len(score)), log_chunks_N)
    return np.stack(columns, axis=1)


def _fit_logistic(
    inputs_NK: Float64Array,
    targets_N: Float64Array,
    weights_N: Float64Array,
    penalty_K: Float64Array,
) -> Float64Array:
    """Return float64 (K,): the coefficients that minimize the penalized, weighted cross-entropy."""
    # Newton's method, on inputs of one scale.
    # The factors differ by orders of magnitude, which would make the equations below inexact.
    scale_K = np.sqrt(np.mean(inputs_NK**2, axis=0)).clip(min=1e-12)
    scaled_NK = inputs_NK / scale_K
    ridge_K = _RIDGE + penalty_K / scale_K**2

    def measure_loss(coefficients_K: Float64Array) -> float:
        logits_N = scaled_NK @ coefficients_K
        # log(1 + exp(z)) - t z is the cross-entropy, without overflow.
        entropy_N = np.logaddexp(0, logits_N) - targets_N * logits_N
        return float(weights_N @ entropy_N + ridge_K @ coefficients_K**2)

    coefficients_K = np.zeros(scaled_NK.shape[1])
    loss = measure_loss(coefficients_K)
    for _ in range(_MAX_STEPS):
        probability_N = _sigmoid(scaled_NK @ coefficients_K)
        gradient_K = scaled_NK.T @ (weights_N * (probability_N - targets_N))
        curvature_N = weights_N * probability_N * (1 - probability_N)
        hessian_KK = scaled_NK.T @ (scaled_NK * curvature_N[:, None])
        ridge_KK = 2 * np.diag(ridge_K)
        step_K = np.linalg.solve(hessian_KK + ridge_KK, gradient_K + ridge_KK @ coefficients_K)
        # A step can overshoot where the curve is flat.
        while (new_loss := measure_loss(coefficients_K - step_K)) > loss:
            # The loss is convex, so a step that is short enough lowers it.
            step_K /= 2
        coefficients_K = coefficients_K - step_K
        if loss - new_loss < 1e-12:
            break
        loss = new_loss
    return np.asarray(coefficients_K / scale_K, np.float64)


def logit(share: float | Float64Array) -> Float64Array:
    """Return the log-odds of probabilities between 0 and 1, without the ends."""
    return np.asarray(np.log(share) - np.log1p(-np.asarray(share)), np.float64)


def _sigmoid(logits_N: Float64Array) -> Float64Array:
    # Not `calls.sigmoid`, although that is more exact near 0: with it, the probabilities of earlier
    # runs and the coefficients of earlier fits would have other late digits.
    return np.asarray(0.5 * (1 + np.tanh(logits_N / 2)), np.float64)
