"""The whole story of `train`, from labelled sequences to a calibrated classifier and its report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from virnucpro import __version__
from virnucpro.backend.arrays import Float32Array, Int64Array, split_rows
from virnucpro.backend.weights import digest_files
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.config import DEFAULT_THRESHOLD, FrameRule, TrainConfig
from virnucpro.embedding.jobs import make_frame_job, refuse_other_parts, warn_of_cuts
from virnucpro.embedding.models import open_frame_models
from virnucpro.embedding.passes import Pass, gather_features, run_passes
from virnucpro.errors import IncompleteError, OutputExistsError
from virnucpro.legacy.merged import read_merged
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.reports.figures import Curve, draw_report
from virnucpro.reports.pages.evaluation_page import write_evaluation_page
from virnucpro.reports.report import (
    PAGE_NAME,
    Resampled,
    Section,
    against_the_rest,
    find_overfit,
    measure_subsets,
    write_report,
)
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.runtime.run import Run, open_run
from virnucpro.scoring.calibration import Calibration
from virnucpro.scoring.calls import call_chunks, score_chunks, sigmoid
from virnucpro.scoring.chunk_head import NUM_FEATURES, ChunkHeadSizes
from virnucpro.scoring.classifier import (
    ChunkClassifier,
    ClassifierMetadata,
    FrameClassifier,
)
from virnucpro.scoring.classifier_files import load_classifier, save_classifier
from virnucpro.sequences.fasta import check_beginnings
from virnucpro.sequences.frame_store import FrameStore, open_frame_store, prepare_frame_store
from virnucpro.sequences.records import NAMES_OF_ROWS
from virnucpro.training.corpus import (
    Corpus,
    describe_classes,
    make_corpus,
    name_classes,
    read_groups,
)
from virnucpro.training.fragments import (
    SIZES,
    Fragments,
    calibrate_fragments,
    join_chunks,
    make_predictions,
    name_size,
)
from virnucpro.training.head import (
    ChunkExamples,
    Examples,
    FittedHead,
    fit_head,
)
from virnucpro.training.splits import SPLITS, balance, choose_chunks, split_groups

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a training made.

    Attributes:
        model_path: The classifier.
        report_dir: Where its report is.
        sections: The figures of the report, on records that the training has not seen.
    """

    model_path: Path
    report_dir: Path
    sections: list[Section]


class _Material(NamedTuple):
    """Everything that a classifier is made of.

    Attributes:
        corpus: The labelled records.
        groups: The group of each record.
        chosen: The chunks of each split.
        gather: Returns the features of rows, float32 (n, D).
        metadata: Of the classifier, but for its calibration.
        store: The stretches of chunks; None for a classifier of open frames.
    """

    corpus: Corpus
    groups: list[str]
    chosen: dict[str, Int64Array]
    gather: Callable[[Int64Array], Float32Array]
    metadata: ClassifierMetadata
    store: FrameStore | None = None


def train(config: TrainConfig, on_progress: ProgressListener | None = None) -> TrainResult:
    """Train a classifier on labelled sequences, calibrate it, and report how good it is.

    In a launch of several processes all of them embed, and the main one does the rest.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process.

    Raises:
        VirnucproError: Whatever goes wrong that a user can mend; see `virnucpro.errors`.
    """
    if config.output_path.exists() and not (config.force or config.resume):
        raise OutputExistsError(
            f"{config.output_path}: exists already; overwrite it with --force, or choose another "
            "(-o)"
        )
    directory = RunDirectory(config.work_dir, config.output_path.stem)
    with open_run(config, directory, config.inputs, on_progress) as run:
        result = None
        if not config.merged:
            material = _embed(run, config, directory)
        elif run.is_main:
            # Nothing is embedded, so the other processes have nothing to do.
            material = _read_merged(config)
        if run.is_main:
            result = _make_classifier(run, config, directory, material)
        return run.share(result)


def _read_merged(config: TrainConfig) -> _Material:
    dims = EmbeddingDims(config.dna_dim, config.protein_dim)
    corpus, features, precisions = read_merged(config.merged, dims)
    groups, chosen = _choose(config, corpus)
    # The files do not say which weights made them, so this classifier cannot refuse others.
    metadata = ClassifierMetadata(
        config.dna_backend,
        config.protein_backend,
        config.dna_dim,
        config.protein_dim,
        config.chunk_length_bp,
        origin={
            "inputs": [_describe_file(path) for path in config.merged],
            "precision": sorted(set(precisions)),
        },
    )
    return _Material(corpus, groups, chosen, lambda rows: features[rows], metadata)


def _describe_file(path: str | Path) -> dict[str, Any]:
    return {"path": str(path), "sha256": digest_files([Path(path)]).removeprefix("sha256:")}


def _embed(run: Run, config: TrainConfig, directory: RunDirectory) -> _Material:
    """Embed the chosen frames; every process chooses the same frames."""
    run.once(lambda: check_beginnings(config.inputs, "dna"))
    with run.stage("open models"):
        models = open_frame_models(run, config)
    rule = FrameRule.parse(config.frame_rule)
    with run.stage(f"find {NAMES_OF_ROWS[rule.kind]}"):
        run.once(
            lambda: prepare_frame_store(
                config.inputs,
                directory.frame_store_dir,
                lambda store: refuse_other_parts(directory, store, models, run.precision),
                chunk_length_bp=config.chunk_length_bp,
                rule=rule,
            )
        )
        store = open_frame_store(directory.frame_store_dir)
        warn_of_cuts(store, models)
        corpus = make_corpus(store, name_classes(config.viral, config.other))
        groups, chosen = _choose(config, corpus)
    # Sorted, as a job wants its rows. The splits share no chunk, so no row comes twice.
    rows = corpus.rows(np.sort(np.concatenate(list(chosen.values()))))
    jobs = [make_frame_job(config, directory, store, one, run.precision, rows) for one in models]
    passes = run_passes(run, jobs)
    # A classifier that lacks the longest sequences would be worse on them, and nobody would know.
    num_failed = sum(len(each.failed_rows) for each in passes)
    if num_failed:
        raise IncompleteError(
            f"{num_failed} {NAMES_OF_ROWS[rule.kind]} exceed the memory of a device; use a device "
            "with more memory, and --resume"
        )
    metadata = _describe_models(config, store, passes)
    gather = partial(gather_features, passes)
    return _Material(
        corpus, groups, chosen, gather, metadata, None if rule.kind == "open" else store
    )


def _describe_models(
    config: TrainConfig, store: FrameStore, passes: Sequence[Pass]
) -> ClassifierMetadata:
    dna, protein = (each.job.identity for each in passes)
    return ClassifierMetadata(
        dna.backend,
        protein.backend,
        dna.embedding_dim,
        protein.embedding_dim,
        config.chunk_length_bp,
        dna.weights_identity,
        protein.weights_identity,
        origin={
            "inputs": [{"path": file["path"], "sha256": file["sha256"]} for file in store.inputs],
            "precision": [dna.precision, protein.precision],
            # `Classifier.check_fits` names them to a user who has other weights.
            "weights": [each.job.model.weights.location for each in passes],
        },
        frame_rule=config.frame_rule,
        chunk_head=None
        if store.rule.kind == "open"
        else ChunkHeadSizes(dna.embedding_dim, protein.embedding_dim),
    )


def _choose(config: TrainConfig, corpus: Corpus) -> tuple[list[str], dict[str, Int64Array]]:
    """Return the group of each record, and the chunks of each split."""
    if config.groups is None:
        # Several records of one id may well be one thing.
        groups = [f"record {name}" for name in corpus.record_ids]
    else:
        groups = read_groups(config.groups, corpus.record_ids)
    # Cut by a seed, so every process cuts alike without being told.
    shares = (1 - config.valid_share - config.test_share, config.valid_share, config.test_share)
    split = split_groups(corpus, groups, shares, config.seed)
    return groups, choose_chunks(corpus, split, config.seed)


def _make_classifier(
    run: Run, config: TrainConfig, directory: RunDirectory, material: _Material
) -> TrainResult:
    corpus, chosen = material.corpus, material.chosen
    with run.stage("training"):
        fitted, head = _fit(run, config, material)
    with run.stage("calibration and report"):
        # Calibrated on one part and measured on another, or the figures would be too good.
        valid = _score(material, head, "valid")
        calibration = calibrate_fragments(corpus, valid)
        metadata = dataclasses.replace(
            material.metadata,
            calibration=calibration,
            origin={"virnucpro": __version__, **(material.metadata.origin or {})}
            | _describe_choice(config, material),
        )
        test = _score(material, head, "test")
        sections = _report(config, directory, material, calibration, test, fitted)
        config.output_path.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(config.output_path, fitted.state, metadata)
        about = _describe_training(config, material, fitted, metadata)
        for warning in about["warnings"]:
            logger.warning("%s", warning)
        write_report(directory.path, sections, about)
        write_evaluation_page(directory.path, directory.path / PAGE_NAME)
    logger.info("%s: trained on %d chunks", config.output_path, len(chosen["train"]))
    return TrainResult(config.output_path, directory.path, sections)


def _fit(
    run: Run, config: TrainConfig, material: _Material
) -> tuple[FittedHead, FrameClassifier | ChunkClassifier]:
    """Fit the network that reads what the frame rule takes, and return it as a classifier, too."""
    is_open = material.store is None
    make = _make_examples if is_open else _make_chunk_examples
    train, valid = (make(material, name) for name in ("train", "valid"))
    fitted = fit_head(train, valid, epochs=config.epochs, seed=config.seed, device=run.device)
    kind = FrameClassifier if is_open else ChunkClassifier
    return fitted, kind(fitted.state, material.metadata, identity="")


def _make_chunk_examples(material: _Material, split: str) -> ChunkExamples:
    corpus, chunks, store = material.corpus, material.chosen[split], material.store
    assert store is not None, "it holds the stretches"
    dims = material.metadata.dna_dim, material.metadata.protein_dim
    shape = (len(chunks), store.rule.max_stretches)
    dna = np.empty((len(chunks), dims[0]), np.float32)
    protein = np.zeros((*shape, dims[1]), np.float32)
    features = np.zeros((*shape, NUM_FEATURES), np.float32)
    # The stretches of a chunk fill its first places.
    is_stretch = np.arange(shape[1]) < corpus.num_frames[chunks][:, None]
    # In blocks, so that only one copy of all embeddings is in memory at a time.
    for block in split_rows(0, len(chunks)):
        rows = corpus.rows(chunks[block])
        both = material.gather(rows)
        # All stretches of a chunk have its DNA.
        dna[block] = both[np.cumsum(is_stretch[block].sum(1)) - 1, : dims[0]]
        protein[block][is_stretch[block]] = both[:, dims[0] :]
        features[block][is_stretch[block]] = store.stretch_features(rows)
    class_of_chunk = corpus.chunk_class[chunks]
    weight = balance(class_of_chunk, corpus.is_viral) * len(chunks)
    is_viral = corpus.is_viral[class_of_chunk]
    return ChunkExamples(dna, protein, features, is_stretch, is_viral, weight)


def _make_examples(material: _Material, split: str) -> Examples:
    corpus, chunks = material.corpus, material.chosen[split]
    class_of_frame = np.repeat(corpus.chunk_class[chunks], corpus.num_frames[chunks])
    return Examples(
        material.gather(corpus.rows(chunks)),
        corpus.is_viral[class_of_frame],
        balance(class_of_frame, corpus.is_viral) * len(class_of_frame),
    )


def _score(material: _Material, head: FrameClassifier | ChunkClassifier, split: str) -> Fragments:
    """Return the fragments of a held-out split, scored as `predict` scores records."""
    corpus, chunks = material.corpus, material.chosen[split]
    if isinstance(head, ChunkClassifier):
        logits = head.score(*_make_chunk_examples(material, split).inputs)
        mean_logits = join_chunks(corpus, chunks, logits.astype(np.float64))
        return mean_logits._replace(score=sigmoid(mean_logits.score))
    frame_scores = head.score(material.gather(corpus.rows(chunks)))
    first_frame = np.concatenate([[0], np.cumsum(corpus.num_frames[chunks])])
    return join_chunks(corpus, chunks, score_chunks(call_chunks(frame_scores, first_frame)))


def _report(
    config: TrainConfig,
    directory: RunDirectory,
    material: _Material,
    calibration: Calibration,
    test: Fragments,
    fitted: FittedHead,
) -> list[Section]:
    """Draw the figures and return the figures in numbers of what training has not seen."""
    corpus = material.corpus
    _, cluster_of_record = np.unique(np.array(material.groups), return_inverse=True)
    probability = calibration.probabilities(test.score, test.num_open_chunks)
    found = make_predictions(corpus, test, probability, cluster_of_record, DEFAULT_THRESHOLD)
    used = found.weight > 0
    found, size = found.select(used), test.size[used]
    lengths = [(name_size(one), size == one) for one in SIZES]
    class_of_fragment = corpus.record_class[test.record[used]]
    classes = [
        against_the_rest(f"class {one.name}", class_of_fragment == index, found.is_viral)
        for index, one in enumerate(corpus.classes)
    ]
    resampled: Resampled = "records" if config.groups is None else "groups"
    # What probabilities would be worth without the calibration.
    before = found._replace(probability=found.score)
    measured = measure_subsets("test", found, [*lengths, *classes], resampled, config.seed)
    title = f"{config.output_path.name}: held-out records"
    curves = [Curve(found, measured[0])]
    draw_report(directory.path, title, curves, measured, classes, fitted.losses, fitted.best_epoch)
    return [
        *measured,
        *measure_subsets(
            "test, score taken as probability", before, lengths, resampled, config.seed
        ),
    ]


def _describe_choice(config: TrainConfig, material: _Material) -> dict[str, Any]:
    corpus = material.corpus
    return {
        "classes": [one._asdict() for one in corpus.classes],
        "groups": None if config.groups is None else _describe_file(config.groups),
        "num_frames": {
            name: int(corpus.num_frames[material.chosen[name]].sum()) for name in SPLITS
        },
        "settings": {
            name: getattr(config, name) for name in ("seed", "epochs", "valid_share", "test_share")
        },
    }


def _describe_training(
    config: TrainConfig, material: _Material, fitted: FittedHead, metadata: ClassifierMetadata
) -> dict[str, Any]:
    return {
        "classifier": {
            "path": str(config.output_path),
            # Read back, so that it is the digest of the file as it was written.
            "identity": load_classifier(config.output_path).identity,
            "metadata": dataclasses.asdict(metadata),
        },
        "classes": describe_classes(material.corpus, material.chosen, material.groups),
        "best_epoch": fitted.best_epoch,
        "losses": fitted.losses,
        "warnings": find_overfit(fitted.losses, fitted.best_epoch),
    }
