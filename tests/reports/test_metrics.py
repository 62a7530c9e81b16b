from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as reference

from virnucpro.reports.metrics import Predictions, bin_equally, estimate_metrics, trace_curves


def make_predictions(num_records: int = 400, seed: int = 0, num_clusters: int = 0) -> Predictions:
    random = np.random.default_rng(seed)
    is_viral = random.random(num_records) < 0.4
    # Rounded, so that many scores are equal.
    score = np.round(1 / (1 + np.exp(-random.standard_normal(num_records) - is_viral)), 2)
    clusters = np.arange(num_records)
    return Predictions(
        is_viral,
        score,
        score**1.5,
        score >= 0.6,
        clusters % num_clusters if num_clusters else clusters,
        random.random(num_records) + 0.1,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_figures_are_those_of_scikit_learn(weighted: bool) -> None:
    found = make_predictions()
    if not weighted:
        found = found._replace(weight=np.ones(len(found.score)))
    truth, called, weight = found.is_viral, found.is_called, found.weight
    tn = weight[~truth & ~called].sum() / weight[~truth].sum()
    wanted = {
        "auroc": reference.roc_auc_score(truth, found.score, sample_weight=weight),
        "auprc": reference.average_precision_score(truth, found.score, sample_weight=weight),
        "precision": reference.precision_score(truth, called, sample_weight=weight),
        "recall": reference.recall_score(truth, called, sample_weight=weight),
        "specificity": tn,
        "f1": reference.f1_score(truth, called, sample_weight=weight),
        "mcc": reference.matthews_corrcoef(truth, called, sample_weight=weight),
        "brier": reference.brier_score_loss(truth, found.probability, sample_weight=weight),
    }
    estimates = estimate_metrics(found)
    for name, value in wanted.items():
        estimate = estimates[name]
        assert estimate.value == pytest.approx(value, abs=1e-12), name
        assert estimate.low < value < estimate.high


def test_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    # Two bins: 0.1 promised and 1 of 4 found; 0.9 promised and 4 of 4 found.
    found = Predictions(
        np.array([1, 0, 0, 0, 1, 1, 1, 1], bool),
        np.repeat([0.1, 0.9], 4),
        np.repeat([0.1, 0.9], 4),
        np.repeat([False, True], 4),
        np.arange(8),
        np.ones(8),
    )
    assert estimate_metrics(found)["calibration_error"].value == pytest.approx((0.15 + 0.1) / 2)
    unknown = found._replace(probability=np.full(8, np.nan))
    assert np.isnan(estimate_metrics(unknown)["brier"]).all()


def test_bins_have_equally_many_records_and_wilson_intervals() -> None:
    found = Predictions(
        np.array([1, 0, 0, 0, 1, 1, 1, 1, 1], bool),
        np.repeat([0.1, 0.9, 0.5], [4, 4, 1]),
        np.repeat([0.1, 0.9, np.nan], [4, 4, 1]),
        np.repeat([False, True], [4, 5]),
        np.arange(9),
        np.ones(9),
    )
    bins = bin_equally(found, 2)
    np.testing.assert_allclose([bins.promised, bins.share], [[0.1, 0.9], [0.25, 1]])
    wanted = binomtest(1, 4).proportion_ci(method="wilson")
    np.testing.assert_allclose([bins.low[0], bins.high[0]], wanted, rtol=1e-6)
    wanted = binomtest(4, 4).proportion_ci(method="wilson")
    np.testing.assert_allclose([bins.low[1], bins.high[1]], wanted, rtol=1e-6)
    # Half the weight of every record says as much.
    halved = bin_equally(found._replace(weight=np.full(9, 0.5)), 2)
    np.testing.assert_allclose(halved, bins)
    many = bin_equally(make_predictions(400))
    assert len(many.share) == 10
    # Weights of all sizes: the sums of a bin with viral records alone differ in the last bit.
    for seed in range(20):
        weighted = make_predictions(400, seed)
        bins = bin_equally(weighted.select(weighted.is_viral))
        assert (bins.share <= bins.high).all()
        assert (bins.low <= bins.share).all()
    assert len(bin_equally(found._replace(probability=np.full(9, np.nan))).share) == 0


def test_curves_are_those_of_scikit_learn() -> None:
    found = make_predictions()
    true, false = trace_curves(found)
    fpr, tpr, _ = reference.roc_curve(
        found.is_viral, found.score, sample_weight=found.weight, drop_intermediate=False
    )
    np.testing.assert_allclose(np.append(0, true / true[-1]), tpr)
    np.testing.assert_allclose(np.append(0, false / false[-1]), fpr)


@pytest.mark.slow
def test_intervals_follow_the_seed_and_hold_the_truth() -> None:
    found = make_predictions()
    assert estimate_metrics(found, seed=1) == estimate_metrics(found, seed=1)
    assert estimate_metrics(found, seed=1)["f1"] != estimate_metrics(found, seed=2)["f1"]
    big = estimate_metrics(make_predictions(20_000, seed=3))["auroc"].value
    held = [
        estimate.low <= big <= estimate.high
        for seed in range(4, 24)
        for estimate in [estimate_metrics(make_predictions(300, seed))["auroc"]]
    ]
    assert sum(held) >= 15


def test_records_of_one_cluster_stand_or_fall_together() -> None:
    alone = make_predictions(2000, num_clusters=2000)
    # The same records ten times over are no more evidence than once.
    tenfold = Predictions._make(np.repeat(column[:200], 10) for column in alone)
    once = alone.select(np.arange(200))
    low, high = estimate_metrics(tenfold)["recall"][1:]
    assert estimate_metrics(once)["recall"] == pytest.approx(estimate_metrics(tenfold)["recall"])
    apart = tenfold._replace(cluster=np.arange(2000))
    narrow = estimate_metrics(apart)["recall"]
    assert narrow.high - narrow.low < 0.5 * (high - low)


@pytest.mark.parametrize("kind", [False, True])
def test_of_four_clusters_there_is_no_interval(kind: bool) -> None:
    found = make_predictions(num_clusters=40)
    few, enough = (
        found._replace(cluster=np.where(found.is_viral == kind, found.cluster % number, 40))
        for number in (4, 5)
    )
    enough = enough._replace(
        cluster=np.where(found.is_viral == kind, enough.cluster, found.cluster)
    )
    before, after = estimate_metrics(enough), estimate_metrics(few)
    for name, (value, low, high) in after.items():
        assert value == before[name].value
        assert np.isnan([low, high]).all()
        assert before[name].low < before[name].high


def test_one_kind_alone_has_no_ranking() -> None:
    found = make_predictions()
    viral = estimate_metrics(found.select(found.is_viral))
    assert np.isnan([viral["auroc"], viral["auprc"]]).all()
    assert np.isnan(viral["specificity"].value)
    assert viral["recall"].value > 0.5
