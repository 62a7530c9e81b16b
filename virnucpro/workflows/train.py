"""The whole story of `train`, from labelled sequences to a calibrated classifier and its report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from virnucpro import __version__
from virnucpro.backend.arrays import split_rows
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.checkpoints.whole_files import make_output_dir, refuse_existing
from virnucpro.config import FrameRule, TrainConfig
from virnucpro.embedding.jobs import make_frame_jobs, refuse_other_parts, warn_of_cuts
from virnucpro.embedding.models import Model, open_frame_models
from virnucpro.embedding.passes import Pass, gather_features, run_passes
from virnucpro.errors import IncompleteError, count, count_who
from virnucpro.legacy.merged import read_merged
from virnucpro.legacy.steps import EmbeddingDims
from virnucpro.reports.pages.evaluation_page import write_evaluation_page
from virnucpro.reports.report import PAGE_NAME, Section, write_report
from virnucpro.runtime.devices import few_threads
from virnucpro.runtime.monitoring import ProgressListener
from virnucpro.runtime.run import Run, open_run
from virnucpro.scoring.calls import call_chunks, score_chunks, sigmoid
from virnucpro.scoring.chunk_head import NUM_FEATURES, ChunkHeadSizes
from virnucpro.scoring.classifier import ChunkClassifier, ClassifierMetadata, FrameClassifier
from virnucpro.scoring.classifier_files import save_classifier
from virnucpro.sequences.fasta import check_beginnings
from virnucpro.sequences.frame_store import (
    FrameStore,
    StoreSettings,
    open_frame_store,
    prepare_frame_store,
)
from virnucpro.sequences.records import NAME_OF_ROW, NAMES_OF_ROWS
from virnucpro.training.corpus import Corpus, make_corpus, name_classes, read_groups
from virnucpro.training.fragments import Fragments, calibrate_fragments, join_chunks
from virnucpro.training.head import ChunkExamples, Examples, FittedHead, fit_head
from virnucpro.training.splits import (
    SPLITS,
    Labelled,
    balance,
    choose_chunks,
    find_twins,
    split_groups,
)
from virnucpro.workflows.finetune import check_finetuning, describe_finetuning, finetune
from virnucpro.workflows.training_report import (
    Material,
    describe_choice,
    describe_file,
    describe_training,
    report_test,
)

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


def train(config: TrainConfig, on_progress: ProgressListener | None = None) -> TrainResult:
    """Train a classifier on labelled sequences, calibrate it, and report how good it is.

    In a launch of several processes, all of them embed, and the main process does the rest.

    Args:
        config: What to do.
        on_progress: Called after each batch of this process. Its argument has the attributes
            `name` (of the pass), `num_rows`, `total_rows` and more.

    Raises:
        VirnucproError: Every error that a user can correct; see `virnucpro.errors`.
    """
    TrainConfig.require(config)
    if not (config.force or config.resume):
        refuse_existing(config.output_path)
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


def _read_merged(config: TrainConfig) -> Material:
    dims = EmbeddingDims(config.dna_dim, config.protein_dim)
    corpus, features, precisions = read_merged(config.merged, dims)
    labelled = _choose(config, corpus)
    # The files do not say which weights made them, so this classifier cannot refuse others.
    metadata = ClassifierMetadata(
        config.dna_backend,
        config.protein_backend,
        config.dna_dim,
        config.protein_dim,
        config.chunk_length_bp,
        origin={
            "inputs": [describe_file(path) for path in config.merged],
            "precision": sorted(set(precisions)),
        },
    )
    return Material(labelled, lambda rows: features[rows], metadata)


def _embed(run: Run, config: TrainConfig, directory: RunDirectory) -> Material:
    """Embed the chosen frames; every process chooses the same frames."""
    run.once(lambda: check_beginnings(config.inputs, "dna"))
    with run.stage("open models"):
        models = open_frame_models(run, config)
        teacher = check_finetuning(run, config, models)
    rule = FrameRule.parse(config.frame_rule)
    with run.stage(f"find {NAMES_OF_ROWS[rule.kind]}"):
        run.once(
            lambda: prepare_frame_store(
                config.inputs,
                directory.frame_store_dir,
                lambda store: _refuse_other_parts(run, config, directory, store, models),
                StoreSettings(config.chunk_length_bp, rule=rule),
            )
        )
        store = open_frame_store(directory.frame_store_dir)
        warn_of_cuts(store, models)
        corpus = make_corpus(store, name_classes(config.viral, config.other))
        labelled = _choose(config, corpus)
        twins = find_twins(labelled, np.asarray(store.sequences("dna").representatives))
        # Before hours of embedding.
        for warning in twins:
            logger.warning("%s", warning)
    tuned = None
    embedded: Sequence[str] = SPLITS
    if config.finetuned:
        tuned = finetune(run, config, directory, models, teacher, store, labelled)
        models = [replace(one, changes=tuned.changes.get(one.alphabet)) for one in models]
        run.once(lambda: refuse_other_parts(directory, store, models, run.precision))
        # The classifier has learned already. The others calibrate and measure it.
        embedded = SPLITS[1:]
    # Sorted, as a job wants its rows. The splits share no chunk, so no row comes twice.
    rows = corpus.rows(np.sort(np.concatenate([labelled.chunks[name] for name in embedded])))
    jobs = make_frame_jobs(
        *(config, directory, store, models, run.precision, rows), reads_chunks=tuned is not None
    )
    passes = run_passes(run, jobs)
    # A classifier that lacks the longest sequences would be worse on them, and nobody would know.
    num_failed = sum(len(each.failed_rows) for each in passes)
    if num_failed:
        who = count_who(num_failed, NAME_OF_ROW[rule.kind], "exceed")
        raise IncompleteError(f"{who} the memory of a device; use a device with more memory")
    metadata = _describe_models(config, store, passes)
    gather = partial(gather_features, passes)
    is_frame = metadata.chunk_head is None
    return Material(labelled, gather, metadata, None if is_frame else store, tuned, twins)


def _refuse_other_parts(
    run: Run,
    config: TrainConfig,
    directory: RunDirectory,
    store: FrameStore,
    models: Sequence[Model],
) -> None:
    # Only after a fine-tuning it is known what its parts are.
    if not config.finetuned:
        refuse_other_parts(directory, store, models, run.precision)


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
        passes[0].job.model.weights.identity,
        passes[1].job.model.weights.identity,
        origin={
            "inputs": [{"path": file["path"], "sha256": file["sha256"]} for file in store.inputs],
            "precision": [dna.precision, protein.precision],
            # `Classifier.check_fits` names them to a user who has other weights. They are as given,
            # because the directory of mini is another one on each machine.
            "weights": [config.dna_weights, config.protein_weights],
        },
        frame_rule=config.frame_rule,
        chunk_head=None
        if store.rule.kind == "open" and not config.finetuned
        else ChunkHeadSizes(dna.embedding_dim, protein.embedding_dim),
        finetuned=describe_finetuning(config),
    )


def _choose(config: TrainConfig, corpus: Corpus) -> Labelled:
    """Split the records by their groups, and choose chunks of each split."""
    if config.groups is None:
        # Several records of one id may well be one thing.
        groups = [f"record {name}" for name in corpus.record_ids]
    else:
        groups = read_groups(config.groups, corpus.record_ids)
    # Cut by a seed, so every process cuts alike without being told.
    shares = (1 - config.valid_share - config.test_share, config.valid_share, config.test_share)
    split = split_groups(corpus, groups, shares, config.seed)
    return Labelled(corpus, groups, split, choose_chunks(corpus, split, config.seed))


def _make_classifier(
    run: Run, config: TrainConfig, directory: RunDirectory, material: Material
) -> TrainResult:
    corpus, _, _, chunks = material.labelled
    with run.stage("training"):
        fitted, head = _fit(run, config, material)
    with run.stage("calibration and report"), few_threads():
        # Calibrated on one part and measured on another, or the figures would be too good.
        valid = _score(material, head, "valid")
        found = calibrate_fragments(corpus, valid)
        # With such a one, the number of chunks alone would decide what is called viral.
        calibration = None if found.ignores_scores else found
        metadata = replace(
            material.metadata,
            calibration=calibration,
            origin={"virnucpro": __version__, **(material.metadata.origin or {})}
            | describe_choice(config, material),
        )
        test = _score(material, head, "test")
        sections = report_test(config, directory, material, calibration, test, fitted)
        make_output_dir(config.output_path.parent)
        changes = material.tuned.changes if material.tuned else {}
        save_classifier(config.output_path, fitted.state, metadata, changes)
        about = describe_training(config, material, fitted, metadata)
        for warning in about["warnings"][len(material.warnings) :]:
            logger.warning("%s", warning)
        write_report(directory.path, sections, about)
        write_evaluation_page(directory.path, directory.path / PAGE_NAME)
    if material.tuned is None:
        logger.info("%s: trained on %s", config.output_path, count(len(chunks["train"]), "chunk"))
    return TrainResult(config.output_path, directory.path, sections)


def _fit(
    run: Run, config: TrainConfig, material: Material
) -> tuple[FittedHead, FrameClassifier | ChunkClassifier]:
    """Fit the network that reads what the frame rule takes, and return it as a classifier, too."""
    is_frame = material.store is None
    if material.tuned is not None:
        fitted = material.tuned.head
    else:
        make = _make_examples if is_frame else _make_chunk_examples
        train, valid = (make(material, name) for name in ("train", "valid"))
        fitted = fit_head(train, valid, epochs=config.epochs, seed=config.seed, device=run.device)
    kind = FrameClassifier if is_frame else ChunkClassifier
    return fitted, kind(fitted.state, material.metadata, identity="")


def _make_chunk_examples(material: Material, split: str) -> ChunkExamples:
    corpus, store = material.labelled.corpus, material.store
    chunks = material.labelled.chunks[split]
    assert store is not None, "it holds the stretches"
    dims = material.metadata.dna_dim, material.metadata.protein_dim
    shape = (len(chunks), store.rule.max_rows)
    dna = np.empty((len(chunks), dims[0]), np.float32)
    protein = np.zeros((*shape, dims[1]), np.float32)
    features = np.zeros((*shape, NUM_FEATURES), np.float32)
    # The stretches of a chunk fill its first places.
    is_stretch = np.arange(shape[1]) < corpus.num_frames[chunks][:, None]
    # In blocks, so that only one copy of all embeddings is in memory at a time.
    for block in split_rows(0, len(chunks)):
        rows = corpus.rows(chunks[block])
        both = material.gather(rows)
        # All stretches of a chunk have its DNA. Of open frames the head reads the first one's.
        num_stretches = is_stretch[block].sum(1)
        dna[block] = both[np.cumsum(num_stretches) - num_stretches, : dims[0]]
        protein[block][is_stretch[block]] = both[:, dims[0] :]
        features[block][is_stretch[block]] = store.stretch_features(rows)
    class_of_chunk = corpus.chunk_class[chunks]
    weight = balance(class_of_chunk, corpus.is_viral) * len(chunks)
    is_viral = corpus.is_viral[class_of_chunk]
    return ChunkExamples(dna, protein, features, is_stretch, is_viral, weight)


def _make_examples(material: Material, split: str) -> Examples:
    corpus, chunks = material.labelled.corpus, material.labelled.chunks[split]
    class_of_frame = np.repeat(corpus.chunk_class[chunks], corpus.num_frames[chunks])
    return Examples(
        material.gather(corpus.rows(chunks)),
        corpus.is_viral[class_of_frame],
        balance(class_of_frame, corpus.is_viral) * len(class_of_frame),
    )


def _score(material: Material, head: FrameClassifier | ChunkClassifier, split: str) -> Fragments:
    """Return the fragments of a held-out split, scored as `predict` scores records."""
    corpus, chunks = material.labelled.corpus, material.labelled.chunks[split]
    if isinstance(head, ChunkClassifier):
        logits = head.score(*_make_chunk_examples(material, split).inputs)
        mean_logits = join_chunks(corpus, chunks, logits.astype(np.float64))
        return mean_logits._replace(score=sigmoid(mean_logits.score))
    frame_scores = head.score(material.gather(corpus.rows(chunks)))
    first_frame = np.concatenate([[0], np.cumsum(corpus.num_frames[chunks])])
    return join_chunks(corpus, chunks, score_chunks(call_chunks(frame_scores, first_frame)))
