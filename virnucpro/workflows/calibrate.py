"""The story of `virnucpro calibrate`: a labelled run gives a classifier its calibration.

Shapes: N labelled records with a score, G groups of related records.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.backend.arrays import BoolArray, Float64Array, Int64Array
from virnucpro.backend.weights import digest_files
from virnucpro.checkpoints.run_directory import find_run
from virnucpro.checkpoints.whole_files import make_output_dir, refuse_existing
from virnucpro.config import DEFAULT_THRESHOLD, CalibrateConfig
from virnucpro.errors import ClassifierError, InputError, count
from virnucpro.reports.labels import number_groups, read_truth
from virnucpro.reports.metrics import Predictions
from virnucpro.reports.report import Resampled, Section, measure_subsets
from virnucpro.reports.run_json import read_run_json
from virnucpro.reports.tables import explaining_numbers, parse_count, parse_share, read_table
from virnucpro.scoring.calibration import Calibration, fit_calibration
from virnucpro.scoring.classifier import ClassifierMetadata
from virnucpro.scoring.classifier_files import read_classifier, save_classifier

logger = logging.getLogger(__name__)

_NUM_FOLDS = 5


@dataclass(frozen=True)
class CalibrateResult:
    """What a calibration made.

    Attributes:
        output_path: The file of the calibrated classifier.
        calibration: The calibration, which is fitted to all labelled records.
        sections: How good the probabilities are. For this, the probabilities of each group come
            from a fit to other groups. Empty if the viral records, or the others, are of a single
            group.
    """

    output_path: Path
    calibration: Calibration
    sections: list[Section]


@dataclass(frozen=True)
class _Labelled:
    """The N records of a run that have a label and a score."""

    is_viral: BoolArray
    score: Float64Array
    num_open_chunks: Int64Array
    group: Int64Array
    is_grouped: bool

    def fit(self, chosen: BoolArray) -> Calibration:
        return fit_calibration(
            self.score[chosen], self.num_open_chunks[chosen], self.is_viral[chosen]
        )


def calibrate(config: CalibrateConfig) -> CalibrateResult:
    """Write the classifier with a calibration that is fitted to a labelled run.

    Raises:
        ClassifierError: The classifier cannot be read, or did not make the run.
        InputError: A table cannot be read, the labelled records are not of both kinds, or the
            scores do not tell these kinds apart.
        OutputExistsError: The file exists.
        OutputError: The file cannot be written.
    """
    CalibrateConfig.require(config)
    if not config.force:
        refuse_existing(config.output_path)
    # The tensors are written again as they are, so the scores stay the same.
    state, found, changes = read_classifier(config.classifier)
    directory = find_run(config.run_dir)
    document = read_run_json(directory.run_json)
    identity = digest_files([config.classifier])
    # By digest, because the file at the same path may have been replaced since.
    if document["classifier"]["identity"] != identity:
        raise ClassifierError(
            f"{config.classifier}: did not make the run in {config.run_dir}: its identity is "
            f"{identity}, the run's classifier has {document['classifier']['identity']}; give the "
            f"run's classifier ({document['classifier']['path']}), or another run"
        )
    num_screened = document.get("screen", {}).get("num_records", 0)
    if num_screened:
        # And those that are left are no sample of the labelled records.
        raise InputError(
            f"{config.run_dir}: its screen judged {count(num_screened, 'record')}, which have "
            "scores of the screen's model; run virnucpro predict on the labelled records without "
            "--screen"
        )
    records = _read_labelled(directory.records_tsv, config.truth)
    calibration = records.fit(np.full(len(records.score), True))
    if calibration.ignores_scores:
        raise InputError(
            f"{config.truth}: the scores of the run in {config.run_dir} do not tell its viral "
            "records from the others, so nothing can be learned of probabilities; check the "
            "labels, or label more records"
        )
    sections = list(_cross_fit(records))
    # What a published file does not say, the run knows: it has used the classifier.
    metadata = _describe_run(document) if found is None else found
    truth = {"path": str(config.truth), "sha256": digest_files([config.truth])}
    counts = {
        "num_viral": int(records.is_viral.sum()),
        "num_others": int((~records.is_viral).sum()),
    }
    origin = {**(metadata.origin or {}), "calibrated_on": {"truth": truth, **counts}}
    metadata = replace(metadata, calibration=calibration, origin=origin)
    # Only now, when nothing of the input can be wrong any more.
    make_output_dir(config.output_path.parent)
    save_classifier(config.output_path, state, metadata, changes)
    return CalibrateResult(config.output_path, calibration, sections)


def _describe_run(document: dict[str, Any]) -> ClassifierMetadata:
    """Return what a classifier without metadata is for: the models and chunks of its run."""
    models = {model["alphabet"]: model for model in document["backends"]}
    dna, protein = models["dna"], models["protein"]
    return ClassifierMetadata(
        dna_backend=dna["name"],
        protein_backend=protein["name"],
        dna_dim=dna["embedding_dim"],
        protein_dim=protein["embedding_dim"],
        chunk_length_bp=document["settings"]["chunk_length_bp"],
        dna_weights_identity=dna["weights_identity"],
        protein_weights_identity=protein["weights_identity"],
    )


def _read_labelled(path: Path, truth_path: Path) -> _Labelled:
    truth = read_truth(truth_path)
    labels, numbers = [], []
    columns = ("record_id", "score", "num_open_chunks")
    for number, line in read_table(path, columns):
        label = truth.get(line["record_id"])
        # Records without a label say nothing, and records without a score have no probability.
        if label is None or line["score"] == "NA":
            continue
        with explaining_numbers(path, number):
            numbers.append((parse_share(line["score"]), parse_count(line["num_open_chunks"])))
        labels.append(label)
    is_viral = np.array([label.is_viral for label in labels], np.bool_)
    num_viral = int(is_viral.sum())
    if num_viral in (0, len(labels)):
        raise InputError(
            f"{truth_path}: found {num_viral} viral and {len(labels) - num_viral} other records of "
            f"{path} with a label and a score; wanted both kinds"
        )
    score, num_open_chunks = zip(*numbers, strict=True)
    logger.info(
        "records with a label and a score: %d viral, %d others, with %d to %d scored chunks",
        *(num_viral, (~is_viral).sum(), min(num_open_chunks), max(num_open_chunks)),
    )
    return _Labelled(
        is_viral=is_viral,
        score=np.array(score, np.float64),
        num_open_chunks=np.array(num_open_chunks, np.int64),
        group=number_groups([label.group for label in labels]),
        is_grouped=any(label.group for label in labels),
    )


def _cross_fit(records: _Labelled) -> Iterator[Section]:
    """Yield the figures of probabilities that come from fits to other groups."""
    is_viral = records.is_viral
    fold = _deal_groups(records)
    if fold is None:
        logger.warning(
            "the error of the probabilities is unknown: to measure it, label at least two groups "
            "with viral records and two with others"
        )
        return
    probability = np.empty(len(fold))
    for number in range(fold.max() + 1):
        left_out = fold == number
        # A record is judged by a fit that has not seen its group, as a new record would be.
        probability[left_out] = records.fit(~left_out).probabilities(
            records.score[left_out], records.num_open_chunks[left_out]
        )
    # Both kinds weigh the same, as the probabilities assume.
    weight = np.where(is_viral, 0.5 / is_viral.sum(), 0.5 / (~is_viral).sum()) * len(is_viral)
    predictions = Predictions(
        is_viral=is_viral,
        score=records.score,
        probability=probability,
        is_called=probability >= DEFAULT_THRESHOLD,
        cluster=records.group,
        weight=weight,
    )
    resampled: Resampled = "groups" if records.is_grouped else "records"
    yield from measure_subsets("cross-fitted", predictions, [], resampled)


def _deal_groups(records: _Labelled) -> Int64Array | None:
    """Return int64 (N,): the fold of each record; None if a fold would leave one kind only.

    A group is never in two folds. Groups with viral records and groups of others are dealt out in
    turns, the largest first.
    """
    group_N = np.unique(records.group, return_inverse=True)[1]
    num_groups = int(group_N.max()) + 1
    viral_G = np.bincount(group_N, records.is_viral, num_groups)
    others_G = np.bincount(group_N, ~records.is_viral, num_groups)
    num_folds = min(_NUM_FOLDS, int(np.count_nonzero(viral_G)), int(np.count_nonzero(others_G)))
    if num_folds < 2:
        return None
    fold_G = np.empty(num_groups, np.int64)
    for chosen in (viral_G > 0, viral_G == 0):
        # The largest first, so that the small ones can even out the folds.
        by_size = np.argsort(-(viral_G + others_G)[chosen], kind="stable")
        fold_G[np.flatnonzero(chosen)[by_size]] = np.arange(len(by_size)) % num_folds
    fold_N = fold_G[group_N]
    for number in range(num_folds):
        # A fit needs both kinds.
        kept = records.is_viral[fold_N != number]
        if kept.all() or not kept.any():
            return None
    return fold_N
