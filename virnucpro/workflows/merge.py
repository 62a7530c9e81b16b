"""The story of `virnucpro merge`: shares of one input, embedded by separate jobs, become one run.

No model is loaded: the parts say which weights made them, and nothing is left to embed. The tables
are those of a run that embedded everything itself, because its batches were the same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro.backend.interface import Weights
from virnucpro.backend.registry import load_backend
from virnucpro.checkpoints.finished_work import collect_parts
from virnucpro.checkpoints.parts import finished_rows, link_parts
from virnucpro.checkpoints.run_directory import RunDirectory, find_run
from virnucpro.checkpoints.whole_files import link_or_copy, refuse_existing
from virnucpro.config import CallsConfig, MergeConfig, PredictConfig, options_of
from virnucpro.embedding.jobs import Job, make_frame_jobs
from virnucpro.embedding.models import Model
from virnucpro.embedding.passes import Pass
from virnucpro.errors import InputError, UsageError, count_who, name_few
from virnucpro.reports.record_results import PredictResult
from virnucpro.reports.run_json import explaining_settings, read_run_json
from virnucpro.runtime.monitoring import PassStatus
from virnucpro.runtime.run import Run, open_run
from virnucpro.scoring.classifier import Classifier
from virnucpro.scoring.frame_scores import Embedded, check_models, open_classifier
from virnucpro.scoring.screened import Screened
from virnucpro.sequences.frame_store import open_frame_store
from virnucpro.workflows.predict import write_results
from virnucpro.workflows.screening import (
    choose_screen_precision,
    judge_records,
    make_screen_jobs,
    open_screen,
)

# Shares that differ in one of these did not embed parts of one plan.
_EQUAL = ("inputs", "backends", "precision", "frame_rule")

logger = logging.getLogger(__name__)


def merge(config: MergeConfig) -> PredictResult:
    """Make the results of a run from the shares that `predict --shard` embedded.

    Raises:
        InputError: A directory holds no finished share, the shares are not of one run, or shares
            are missing.
        UsageError: The output directory is one of the shares.
        OutputExistsError: The output directory holds a run already.
        VirnucproError: Every other error that a user can correct; see `virnucpro.errors`.
    """
    MergeConfig.require(config)
    shares = [find_run(one) for one in config.run_dirs]
    documents = [
        read_run_json(share.run_json, "virnucpro predict --shard", is_share=True)
        for share in shares
    ]
    # Before the directory is made: shares of two commands must leave nothing behind.
    _check_shares(config.run_dirs, documents)
    first = documents[0]
    with explaining_settings(shares[0].run_json):
        predict_config = _take_settings(config, first["settings"])
    # Scores are made in float32 on a CPU, whatever device the shares had.
    here = dataclasses.replace(predict_config, device="cpu", precision="fp32")
    directory = RunDirectory(config.output_dir, predict_config.stem, predict_config.prefix)
    # With --force, the run would remove the share before it is read.
    if directory.frame_store_dir.resolve() in [one.frame_store_dir.resolve() for one in shares]:
        raise UsageError(f"{config.output_dir}: is one of the shares; choose another output (-o)")
    # The run would refuse it as well, but advise --resume, which this command does not have.
    if directory.is_used() and not config.force:
        refuse_existing(directory.path)
    with open_run(here, directory, predict_config.inputs) as run:
        classifier = open_classifier(predict_config)
        with run.stage("collect the shares"):
            _link_files(shares[0].frame_store_dir, directory.frame_store_dir)
            # Read whole, because it comes from another directory, and perhaps from another machine.
            store = open_frame_store(directory.frame_store_dir, verify=True)
            screened = None
            if predict_config.screen is not None:
                # Every share has screened the whole input, and all of them found the same.
                screened = _judge_again(
                    *(run, predict_config, classifier, directory, shares[0], first)
                )
            rows = None if screened is None else screened.rows_to_judge(store)
            models = [_describe_model(backend, classifier) for backend in first["backends"]]
            jobs = make_frame_jobs(
                *(predict_config, directory, store, models, first["precision"], rows),
                reads_chunks=classifier.reads_chunks,
            )
            passes = [_collect_pass(job, shares, documents) for job in jobs]
        check_models(predict_config, classifier, models)
        embedded = Embedded(classifier, store, passes, screened)
        return write_results(run, directory, predict_config, embedded)


def _take_settings(config: MergeConfig, settings: dict[str, Any]) -> PredictConfig:
    """Return the settings of the whole run, given those of a share."""
    # What belongs to one share, and not to the whole.
    others = {"shard": None, "checkpoint_dir": None, "resume": False}
    own = {"output_dir": config.output_dir, "force": config.force}
    return PredictConfig(**settings | others | own)


def _judge_again(
    run: Run,
    config: PredictConfig,
    run_classifier: Classifier,
    directory: RunDirectory,
    share: RunDirectory,
    document: Mapping[str, Any],
) -> Screened:
    """Return what the screen of a share found, and take its files over.

    Raises:
        VirnucproError: They are damaged, or the screen's classifier is not here.
    """
    config, classifier = open_screen(config, run_classifier)
    ours, theirs = directory.screen, share.screen
    _link_files(theirs.frame_store_dir, ours.frame_store_dir)
    store = open_frame_store(ours.frame_store_dir, verify=True)
    if "screen" not in document:
        raise _miss(share, "screen")
    models = [_describe_model(each, classifier) for each in document["screen"]["backends"]]
    precision = choose_screen_precision(document["precision"])
    jobs = make_screen_jobs(config, directory, store, models, precision)
    passes = [_collect_pass(job, [theirs], [document]) for job in jobs]
    return judge_records(run, config, store, passes, classifier)


def _check_shares(run_dirs: Sequence[Path], documents: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that the shares are of one run, and all there.

    Raises:
        InputError: They are not.
    """
    first = documents[0]
    calls = options_of(CallsConfig)
    for run_dir, document in zip(run_dirs, documents, strict=True):
        same = {name: document[name] == first[name] for name in _EQUAL}
        same["screen"] = _summarize_screen(document) == _summarize_screen(first)
        same["classifier"] = document["classifier"]["identity"] == first["classifier"]["identity"]
        # The rule of the calls must be one for all, because it is applied to all.
        settings, wanted = document["settings"], first["settings"]
        same |= {name: settings.get(name) == wanted.get(name) for name in calls}
        others = [name for name, is_same in same.items() if not is_same]
        if others:
            raise InputError(
                f"{run_dir}: is no share of the same run as {run_dirs[0]}: {', '.join(others)} "
                "differ; merge the shares of one command only"
            )
    num_shares = int(first["shard"].partition("/")[2])
    wanted = [f"{number + 1}/{num_shares}" for number in range(num_shares)]
    found = {document["shard"] for document in documents}
    missing = [shard for shard in wanted if shard not in found]
    if missing or len(found) > num_shares:
        listed = sorted(found, key=lambda shard: int(shard.partition("/")[0]))
        raise InputError(
            f"{name_few(run_dirs)}: found the shares {name_few(listed)}; missing: "
            f"{name_few(missing) or 'none'}. Name the directories of all shares"
        )


def _summarize_screen(document: Mapping[str, Any]) -> list[Any]:
    found = document.get("screen", {})
    # Paths may differ between machines.
    return [found.get(name) for name in ("bound", "max_loss", "expected_loss", "num_records")]


def _describe_model(backend: Mapping[str, Any], classifier: Classifier) -> Model:
    """Return the model of a share as run.json describes it; its weights need not be here."""
    weights = Weights(
        location=backend["weights"],
        path=Path(backend["weights"]),
        identity=backend["weights_identity"],
        embedding_dim=backend["embedding_dim"],
    )
    changes = classifier.changes.get(backend["alphabet"])
    return Model(load_backend(backend["name"]), weights, changes)


def _collect_pass(
    job: Job, shares: Sequence[RunDirectory], documents: Sequence[Mapping[str, Any]]
) -> Pass:
    """Take the parts of a pass over from the shares, and return what they did together.

    Raises:
        InputError: A row is in no share.
        IdentityMismatchError: A part was made by another version of a backend.
    """
    for share, document in zip(shares, documents, strict=True):
        if job.name not in document["passes"]:
            raise _miss(share, f"passes.{job.name!r}")
    alphabet = job.model.alphabet
    link_parts([share.parts_dir(alphabet) for share in shares], job.parts_dir)
    # run.json says more than the counters, such as the host. The name is the key above.
    known = {field.name for field in dataclasses.fields(PassStatus)} - {"name"}
    summaries = [
        PassStatus(job.name, **{name: value for name, value in told.items() if name in known})
        for document in documents
        for told in document["passes"][job.name]
    ]
    done = Pass(job, summaries, collect_parts(job.parts_dir, job.identity))
    # A row that failed in its share counts as done: no share will try it again.
    finished = np.append(finished_rows(done.parts), done.failed_rows)
    num_missing = len(np.setdiff1d(job.rows, finished))
    if num_missing:
        budgets = sorted({summary.budget_tokens for summary in summaries} - {0})
        who = count_who(num_missing, "sequence", "are", of=len(job.rows))
        raise InputError(
            f"{job.name}: {who} in no share. A share is damaged (run its command again with "
            "--resume), or the shares cut the input into different batches (of up to "
            f"{', '.join(map(str, budgets))} tokens; give all shares the same --dna-batch-tokens "
            "and --protein-batch-tokens)"
        )
    return done


def _miss(share: RunDirectory, field: str) -> InputError:
    return InputError(
        f"{share.run_json}: lacks {field}, which the settings of the share need; run its command "
        "again with --resume"
    )


def _link_files(source: Path, directory: Path) -> None:
    directory.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        link_or_copy(path, directory / path.name)
