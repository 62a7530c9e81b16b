from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.record_calls import make_records
from virnucpro.config import CallConfig
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.calls import RecordCalls
from virnucpro.scoring.decisions import Decision, decide_calls, rate_confidence, round_shares

CALIBRATION = Calibration(slope=1.0, slope_growth=0.5, offset=0.0, most_chunks=20)


def decide(records: RecordCalls, *args: object, **settings: object) -> Decision:
    return decide_calls(records, CallConfig(run_dir=Path(), **settings), *args)


# Rounding


def test_four_digits_tell_the_distance_to_zero_or_one() -> None:
    value = np.array([0.123456, 0.99987654321, 1.23456e-9, 0.0, 1.0, np.nan, 0.5])
    np.testing.assert_array_equal(
        round_shares(value), [0.1235, 0.9998765, 1.235e-9, 0, 1, np.nan, 0.5]
    )
    assert repr(float(round_shares(np.array([0.8408466385704241]))[0])) == "0.8408"


def test_rounding_twice_changes_nothing_and_keeps_the_order() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 8, 100_000)
    value = np.sort(np.concatenate([1 / (1 + np.exp(-logits)), 0.5 + random.normal(0, 1e-5, 999)]))
    once = round_shares(value)
    np.testing.assert_array_equal(round_shares(once), once)
    assert (np.diff(once) >= 0).all()
    assert max(len(repr(float(one))) for one in once[:: len(once) // 500]) < 22
    np.testing.assert_allclose(once, value, rtol=5.1e-4, atol=1e-15)
    np.testing.assert_allclose(1 - once, 1 - value, rtol=5.1e-4, atol=1e-15)
    # One chunk is called as the original calls it.
    np.testing.assert_array_equal(once >= 0.5, value >= 0.5)


# Calls


def test_the_printed_number_decides() -> None:
    score = np.nextafter(0.7, 0)
    (call,) = decide(make_records([score]), None, threshold=0.7).records.call
    assert call == "virus"


def test_a_classifier_may_state_its_threshold() -> None:
    records = make_records([0.6, 0.8])
    decision = decide(records, CALIBRATION, 0.7)
    assert decision.records.call.tolist() == ["others", "virus"]
    assert decision.rule.threshold == 0.7
    # What the user says goes first; presets move the threshold of the classifier.
    assert decide(records, CALIBRATION, 0.7, threshold=0.55).rule.threshold == 0.55
    assert decide(records, CALIBRATION, 0.1, preset="relaxed").rule.threshold == 0.1
    certain = make_records([1 - 1e-7, 1 - 1e-6])
    assert decide(certain, CALIBRATION, 0.9, preset="conservative").rule.threshold > 0.99
    assert decide(certain, CALIBRATION, 1.0, preset="conservative").rule.threshold == 1.0


def test_presets_are_ordered_whatever_the_input() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        records = make_records(random.beta(*random.uniform(0.2, 4, 2), random.integers(0, 9)))
        usual = random.uniform(0, 1)
        strict, default, wide = (
            decide(records, CALIBRATION, usual, preset=preset).records.call == "virus"
            for preset in ("conservative", None, "relaxed")
        )
        assert not (strict & ~default).any()
        assert not (default & ~wide).any()


@pytest.mark.parametrize(
    ("score", "settings", "why"),
    [
        ([], {}, "the input has no records"),
        ([np.nan, np.nan], {}, "no record has a score (2 no_open_frame)"),
        ([0.25], {}, "the highest probability is 0.25, and the threshold is 0.5"),
        (
            [0.75],
            {"max_fdr": 0.1},
            "even the record with the highest probability (0.75) has an expected false "
            "discovery rate above 0.1",
        ),
    ],
)
def test_an_empty_list_says_why(score, settings, why) -> None:
    decision = decide(make_records(score), CALIBRATION, **settings)
    assert decision.warnings == [f"no record is called viral: {why}"]


def test_a_list_of_which_a_fifth_is_wrong_is_warned_of() -> None:
    assert decide(make_records([0.81]), CALIBRATION).warnings == []
    (warning,) = decide(make_records([0.6]), CALIBRATION).warnings
    assert "is 0.4: that share of them is probably not viral" in warning


def draw_calibrated(num_viral: int, num_others: int) -> RecordCalls:
    """Return records whose scores are right probabilities if half of the records are viral."""
    random = np.random.default_rng(3)
    # Of these, the density of viral scores is 2 p, and that of others 2 (1 - p).
    return make_records([*random.beta(2, 1, num_viral), *random.beta(1, 2, num_others)])


def test_probabilities_that_contradict_their_share_are_warned_of() -> None:
    rare = draw_calibrated(300, 5_700)
    decision = decide(rare, CALIBRATION, threshold=0.9)
    assert decision.rule.expected_fdr == pytest.approx(0.05, abs=0.02)
    # Of the 300 viral ones, 19 % have 0.9 or more, and so have 1 % of the others.
    assert (decision.records.call[300:] == "virus").sum() == pytest.approx(57, abs=15)
    (warning,) = decision.warnings
    found = re.fullmatch(
        r"the probabilities assume that 50 % of all records are viral, but the scores suggest "
        r"about (\S+) %. With that share, the expected false discovery rate of the viral records "
        r"is (\S+), and not 0\.0\d+\. Give the share that you expect in your sample "
        r"\(--viral-share\), or --estimate-viral-share",
        warning,
    )
    assert found is not None
    assert float(found[1]) == pytest.approx(5, abs=2)
    assert float(found[2]) == pytest.approx(0.5, abs=0.1)
    # The user knows better, half of the records are viral indeed, or there are too few of them.
    assert decide(rare, CALIBRATION, threshold=0.9, viral_share=0.5).warnings == []
    assert decide(draw_calibrated(3_000, 3_000), CALIBRATION, threshold=0.9).warnings == []
    assert decide(draw_calibrated(4, 95), CALIBRATION, threshold=0.8).warnings == []


@pytest.mark.parametrize("num_viral", [0, 60, 300, 3_000, 5_700, 6_000])
def test_the_share_of_viral_records_is_estimated(num_viral: int) -> None:
    records = draw_calibrated(num_viral, 6_000 - num_viral)
    decision = decide(records, CALIBRATION, max_fdr=0.2, estimate_viral_share=True)
    assert decision.rule.is_share_estimated
    assert 0 < decision.rule.viral_share < 1
    assert not np.isnan(decision.records.probability).any()
    assert decision.rule.viral_share == pytest.approx(num_viral / 6_000, abs=0.02)
    # So the expected rate is the real one.
    is_viral = np.arange(6_000) < num_viral
    is_called = decision.records.call == "virus"
    if is_called.sum() > 100:
        real = (is_called & ~is_viral).sum() / is_called.sum()
        assert decision.rule.expected_fdr == pytest.approx(real, abs=0.05)
    # The estimate is the same number for a person who gives it.
    given = decide(records, CALIBRATION, max_fdr=0.2, viral_share=decision.rule.viral_share)
    np.testing.assert_array_equal(given.records.probability, decision.records.probability)
    assert "estimated share of viral records" in decision.rule.describe()


def test_too_few_records_estimate_nothing() -> None:
    decision = decide(draw_calibrated(4, 95), CALIBRATION, estimate_viral_share=True)
    assert (decision.rule.viral_share, decision.rule.is_share_estimated) == (0.5, False)
    assert decision.warnings[0] == (
        "the share of viral records is not estimated, because fewer than 100 records have a "
        "probability; the probabilities assume 0.5"
    )


def test_a_screen_counts_for_the_estimate() -> None:
    records = draw_calibrated(300, 5_700)
    half = Calibration(slope=2.0, slope_growth=0.0, offset=0.0, most_chunks=20, viral_share=0.1)
    # The screen has seen the least viral ones, with scores of its own.
    is_screened = records.score < 0.2
    score = np.where(is_screened, half_scores(records.score), records.score)
    judged_by = np.where(is_screened, "screen", "classifier").astype(object)
    mixed = records._replace(score=score, judged_by=judged_by)
    decision = decide_calls(
        mixed, CallConfig(run_dir=Path(), estimate_viral_share=True), CALIBRATION, None, half, 0.07
    )
    assert decision.rule.viral_share == pytest.approx(0.05, abs=0.02)
    # What the screen has judged keeps the share that the screen assumed.
    wanted = half.probabilities(round_shares(score), records.num_open_chunks, 0.07)
    np.testing.assert_array_equal(
        decision.records.probability[is_screened], round_shares(wanted)[is_screened]
    )


def half_scores(score: np.ndarray) -> np.ndarray:
    """Return scores of a classifier whose calibration doubles the logit and assumes a tenth."""
    logit = np.log(score / (1 - score)) + np.log(0.1 / 0.9)
    return 1 / (1 + np.exp(-logit / 2))


def test_the_rule_is_a_sentence() -> None:
    records = make_records([0.9, 0.2])
    assert decide(records, CALIBRATION, viral_share=0.5).rule.describe() == (
        "calls by probability: a record is viral from a probability of 0.5 on; assumed share of "
        "viral records 0.5; expected false discovery rate of the viral records: 0.1"
    )
    assert (
        decide(records, None)
        .rule.describe()
        .startswith(
            "calls by score: a record is viral from a score of 0.5 on. The classifier has no "
        )
    )
    assert "no record may be called viral (--conservative: bound on" in (
        decide(records, CALIBRATION, preset="conservative").rule.describe()
    )


# Confidence


def test_confidence_reads_the_probability_of_the_call_and_the_chunks() -> None:
    call = np.array(["virus"] * 5 + ["others"] * 3 + ["none"], object)
    probability = np.array([0.95, 0.95, 0.94, 0.8, 0.79, 0.05, 0.2, 0.85, np.nan])
    num_open_chunks = np.array([3, 2, 9, 1, 9, 3, 1, 9, 0])
    assert rate_confidence(call, probability, num_open_chunks).tolist() == [
        *("high", "medium", "medium", "medium", "low"),
        # A record under a high threshold is called others although it is probably viral.
        *("high", "medium", "low"),
        "-",
    ]
    unknown = np.full(9, np.nan)
    assert set(rate_confidence(call, unknown, num_open_chunks)) == {"-"}


def test_calls_that_rest_on_little_are_counted() -> None:
    records = make_records([0.9, 0.9, 0.9, 0.1, np.nan], [1, 2, 3, 1, 0])
    assert decide(records, CALIBRATION).counts() == {
        "virus": 3,
        "others": 1,
        "none": 1,
        "virus_few_chunks": 2,
    }
