"""Fine-tuning of the encoders, which `train` does before it embeds held-out records."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from virnucpro.backend.interface import ALPHABETS, Collator, TrainableBackend
from virnucpro.checkpoints.run_directory import RunDirectory
from virnucpro.checkpoints.whole_files import make_output_dir
from virnucpro.config import TrainConfig
from virnucpro.config.published import find_weights
from virnucpro.embedding.models import Model, open_model
from virnucpro.embedding.workers import count_workers, pins_memory
from virnucpro.errors import ClassifierError, UsageError, brief
from virnucpro.runtime.devices import DTYPES, explaining_memory
from virnucpro.runtime.run import Run
from virnucpro.scoring.chunk_head import ChunkHead, ChunkHeadSizes
from virnucpro.scoring.classifier import ChunkClassifier
from virnucpro.scoring.classifier_files import load_classifier, read_classifier
from virnucpro.scoring.frame_scores import check_models
from virnucpro.sequences.frame_store import FrameStore
from virnucpro.training.chunk_source import (
    ChunkSource,
    LabelledSequences,
    TrainingBatch,
    open_training_loader,
)
from virnucpro.training.finetuning import TOO_LARGE, FineTuned, FineTuning, Teacher
from virnucpro.training.head import make_chunk_head
from virnucpro.training.held_out import HeldOut
from virnucpro.training.lora import train_adapters
from virnucpro.training.network import Network
from virnucpro.training.splits import SPLITS, Labelled

_SHORTER = (1.0, 1.0, 0.6, 0.4)
"""The lengths of drawn chunks, as shares of the classifier's: reads are shorter than it."""

_MAX_WORKERS = 12


class TeacherModels(NamedTuple):
    """A teacher, opened but not loaded.

    Attributes:
        classifier: Its head over chunks.
        models: Its DNA model and its protein model.
    """

    classifier: ChunkClassifier
    models: list[Model]


def check_finetuning(
    run: Run, config: TrainConfig, models: Sequence[Model]
) -> TeacherModels | None:
    """Check what can be checked before anything is read, and return the opened teacher.

    Raises:
        ClassifierError: The teacher does not fit this training or its own weights.
        UsageError: A backend cannot be fine-tuned, or has no such linear layers; or the precision
            is not for a training.
    """
    if not config.finetuned:
        return None
    if run.precision not in ("bf16", "fp32"):
        raise UsageError(
            f"fine-tuning computes in bf16 or fp32, and this device would compute in "
            f"{run.precision}; choose --precision fp32"
        )
    _check_layers(config, models)
    return _open_teacher(run, config)


def _check_layers(config: TrainConfig, models: Sequence[Model]) -> None:
    trained = [model for model in models if model.alphabet in config.finetuned]
    for model in trained:
        kinds = model.backend.info.linear_layers
        if not kinds:
            raise UsageError(
                f"backend {model.name} cannot be fine-tuned; `virnucpro backends` lists which can"
            )
        if not _choose_kinds(config, model):
            raise UsageError(
                f"lora_targets {config.lora_targets}: {model.name} has no such linear layers, but "
                f"{', '.join(kinds)}"
            )
    known = {kind for model in trained for kind in model.backend.info.linear_layers}
    unknown = set((config.lora_targets or "").split(",")) - known - {""}
    if unknown:
        raise UsageError(
            f"lora_targets {config.lora_targets}: no backend has {', '.join(sorted(unknown))}; "
            f"wanted some of {', '.join(sorted(known))}"
        )


def _choose_kinds(config: TrainConfig, model: Model) -> list[str]:
    """Return the kinds of the model's linear layers that get adapters."""
    kinds = model.backend.info.linear_layers
    wanted = kinds if config.lora_targets is None else config.lora_targets.split(",")
    return [kind for kind in kinds if kind in wanted]


def finetune(
    run: Run,
    config: TrainConfig,
    directory: RunDirectory,
    models: Sequence[Model],
    teacher: TeacherModels | None,
    store: FrameStore,
    labelled: Labelled,
) -> FineTuned:
    """Train encoders and the head over chunks together, in all processes of the launch.

    Args:
        run: The run.
        config: What to do.
        directory: Where the state goes, from which `--resume` goes on.
        models: The DNA model and the protein model.
        teacher: What `check_finetuning` returned.
        store: The chunks and stretches of all records.
        labelled: The labels of the records, and what is learned from and held out.

    Raises:
        VirnucproError: Whatever goes wrong that a user can mend.
    """
    run.once(lambda: make_output_dir(directory.finetuning_dir))
    with run.stage("load encoders"), explaining_memory(TOO_LARGE):
        teach = None if teacher is None else _load_teacher(run, config, teacher)
        collators = _load_collators(models)
        is_train = labelled.split_of_record == SPLITS.index("train")
        source = ChunkSource(
            LabelledSequences.of(store, labelled.corpus, labelled.groups, is_train),
            store.rule,
            tuple(round(share * config.chunk_length_bp) for share in _SHORTER),
            collators,
            max_mutation_rate=config.max_mutation_rate,
            seed=config.seed,
            teacher_collators=None if teacher is None else _load_collators(teacher.models),
        )
        network = _make_network(run, config, models, source)
    tuning = FineTuning(
        run,
        config,
        network,
        HeldOut(run, config, labelled, store, collators),
        directory.finetuning_dir / "state.safetensors",
        _describe(run, config, store, models, labelled, teacher),
        teach,
    )
    with run.stage("fine-tuning"):
        tuned = tuning.fit(partial(_open_steps, run, config, source))
    # The next stage loads the encoders again, with what has changed.
    del tuning, network, teach
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    return tuned


def describe_finetuning(config: TrainConfig) -> dict[str, Any] | None:
    """Return what the classifier's file says of a fine-tuning; None without one."""
    if not config.finetuned:
        return None
    how: dict[str, Any] = {"weights": "all"}
    if not config.finetune_all:
        how = {"rank": config.lora_rank, "targets": config.lora_targets or "all"}
    return {"encoders": list(config.finetuned), **how}


def _describe(
    run: Run,
    config: TrainConfig,
    store: FrameStore,
    models: Sequence[Model],
    labelled: Labelled,
    teacher: TeacherModels | None,
) -> Mapping[str, Any]:
    """Return what tells this training from others; batches of other sizes only round otherwise."""
    return {
        "input": store.digest_for_parts,
        "classes": labelled.corpus.classes,
        "models": [(one.name, one.loaded.version, one.weights.identity) for one in models],
        "teacher": None if teacher is None else teacher.classifier.identity,
        "groups": list(labelled.groups),
        "device": run.device.type,
        "precision": run.precision,
        # Each process draws chunks of its own.
        "num_processes": run.num_processes,
        "settings": describe_settings(config),
    }


def describe_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide the weights, but for files."""
    names = (
        *("frame_rule", "chunk_length_bp", "valid_share", "test_share", "seed", "finetune"),
        *("finetune_all", "lora_rank", "lora_targets", "learning_rate", "steps", "step_chunks"),
        *("max_mutation_rate", "evaluate_steps", "teacher_weight"),
    )
    return {name: getattr(config, name) for name in names}


def _load_collators(models: Sequence[Model]) -> tuple[Collator, Collator]:
    dna, protein = (model.load_collator() for model in models)
    return dna, protein


def _open_steps(
    run: Run, config: TrainConfig, source: ChunkSource, first_step: int
) -> Iterator[list[TrainingBatch]]:
    num_chunks, rest = divmod(config.step_chunks, run.num_processes)
    return open_training_loader(
        source,
        first_step,
        run.rank,
        num_chunks + (run.rank < rest),
        config.micro_batch_tokens,
        # Drawing takes longer than tokenizing, which is all that the workers of a pass do.
        count_workers(config, run.device, most=_MAX_WORKERS),
        pin_memory=pins_memory(config, run.device),
    )


def _make_network(
    run: Run, config: TrainConfig, models: Sequence[Model], source: ChunkSource
) -> Network:
    """Return the network with trained encoders as they are at first, alike in every process."""
    batches = source.draw(0, 0, config.step_chunks, config.micro_batch_tokens)
    if not batches:
        raise UsageError(
            f"none of {config.step_chunks} drawn chunks has anything that the frame rule "
            f"{config.frame_rule} takes; choose another rule (--frame-rule), or more --step-chunks"
        )
    sizes = ChunkHeadSizes(*(model.weights.embedding_dim for model in models))
    # The caller's random numbers stay as they were. All numbers are drawn on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        dna, protein = (_load_encoder(run, config, model) for model in models)
        network = Network(dna, protein, ChunkHead(sizes), config.finetuned)
        with torch.no_grad():
            found = [network.embed(send_to_device(batch, run.device)) for batch in batches]
        embeddings = [torch.cat(one).float().cpu().numpy() for one in zip(*found, strict=True)]
        network.head = make_chunk_head(sizes, *embeddings).to(run.device)
    return network


def _load_encoder(run: Run, config: TrainConfig, model: Model) -> nn.Module:
    if model.alphabet not in config.finetuned:
        return _load_frozen(run, config, model)
    backend = cast(TrainableBackend, model.backend)
    # Frozen weights may be in half precision. Those that are trained take too small steps for it.
    dtype = torch.float32 if config.finetune_all else DTYPES[run.precision]
    encoder = backend.load_trainable(
        model.weights,
        dtype=dtype,
        device=run.device,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    if config.finetune_all:
        return encoder.requires_grad_(True)
    train_adapters(encoder, _choose_kinds(config, model), config.lora_rank)
    return encoder


def _load_frozen(run: Run, config: TrainConfig, model: Model) -> nn.Module:
    # The interface says that it is a module.
    return cast(nn.Module, model.load_encoder(run.device, run.precision, config.attention))


def _open_teacher(run: Run, config: TrainConfig) -> TeacherModels | None:
    if config.teacher is None:
        return None
    classifier = load_classifier(config.teacher)
    metadata = classifier.metadata
    if not isinstance(classifier, ChunkClassifier) or metadata is None:
        raise ClassifierError(
            f"{config.teacher}: scores single frames; give a teacher that scores whole chunks, "
            "such as one made with --finetune"
        )
    if str(classifier.rule) != config.frame_rule:
        raise ClassifierError(
            f"{config.teacher}: reads chunks by the rule {classifier.rule}, and this training by "
            f"{config.frame_rule}; give a teacher with the same rule, or choose its rule "
            "(--frame-rule)"
        )
    backends = metadata.dna_backend, metadata.protein_backend
    given = config.teacher_dna_weights, config.teacher_protein_weights
    models = []
    for number, alphabet in enumerate(ALPHABETS):
        told = find_weights(classifier.weights_locations[number], backends[number])
        # A file of others must not decide what is downloaded.
        location = given[number] or (told if told and Path(told).exists() else None)
        if location is None:
            raise UsageError(
                f"{config.teacher}: its {alphabet} weights are not where they were in its training "
                f"({brief(told) if told else 'unknown'}); name them with "
                f"--teacher-{alphabet}-weights"
            )
        changes = classifier.changes.get(alphabet)
        models.append(open_model(backends[number], location, run, changes))
    check_models(config, classifier, models)
    return TeacherModels(classifier, models)


def _load_teacher(run: Run, config: TrainConfig, teacher: TeacherModels) -> Teacher:
    """Return what tells the teacher's logits of chunks."""
    dna, protein = (_load_frozen(run, config, model) for model in teacher.models)
    head = ChunkHead(teacher.classifier.sizes)
    head.load_state_dict(dict(read_classifier(cast(Path, config.teacher)).state))
    network = Network(dna, protein, head.to(run.device), ()).eval()

    @torch.inference_mode()
    def ask(batch: TrainingBatch) -> Tensor:
        assert batch.teacher_dna is not None, "the source has the teacher's collators"
        assert batch.teacher_protein is not None, "the source has the teacher's collators"
        logits_C: Tensor = network(
            batch._replace(dna=batch.teacher_dna, protein=batch.teacher_protein)
        )
        return logits_C

    return ask
