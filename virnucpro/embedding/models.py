"""Model: a backend with its weights, and the one place that opens and loads them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch

from virnucpro.backend.changes import Changes, digest_changes
from virnucpro.backend.interface import (
    ALPHABETS,
    Alphabet,
    Attention,
    Backend,
    Collator,
    Encoder,
    TrainableBackend,
    Weights,
)
from virnucpro.backend.registry import LoadedBackend, load_backend
from virnucpro.backend.weights import find_download
from virnucpro.checkpoints.identity import Identity
from virnucpro.config import OPEN_RULE, FrameRule, FramesConfig
from virnucpro.config.published import ESM2_3B, find_weights
from virnucpro.embedding.workers import prepare_workers
from virnucpro.errors import (
    BackendError,
    Terminated,
    UsageError,
    VirnucproError,
    WeightsError,
    brief,
    first_line,
)
from virnucpro.runtime.devices import DTYPES
from virnucpro.runtime.environment import machine_name
from virnucpro.runtime.run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A backend and its weights, opened but not loaded.

    Attributes:
        loaded: The backend.
        weights: Its weights as their files have them.
        changes: What a classifier changes in them when they are loaded; None if there is nothing.
    """

    loaded: LoadedBackend
    weights: Weights
    changes: Changes | None = None

    @property
    def backend(self) -> Backend:
        """The backend itself."""
        return self.loaded.backend

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.loaded.name

    @property
    def alphabet(self) -> Alphabet:
        """What the model reads: `dna` or `protein`."""
        return self.backend.info.alphabet

    @cached_property
    def changes_identity(self) -> str | None:
        """The digest of what is changed in the weights; None if nothing is."""
        return digest_changes(self.changes) if self.changes else None

    @property
    def identity(self) -> str:
        """What tells the weights as they are loaded, with all changes, from any others."""
        changed = self.changes_identity
        return self.weights.identity + ("" if changed is None else f"+{changed}")

    def compute_precision(self, precision: str) -> str:
        """Return what the model computes in when a run computes in `precision`."""
        return self.loaded.compute_precision(precision)

    def min_tokens(self, precision: str) -> int:
        """Return below how many tokens a sequence has batches apart in a run in `precision`."""
        is_fp8 = self.compute_precision(precision) == "fp8"
        return self.backend.info.min_fp8_tokens if is_fp8 else 0

    @cached_property
    def _loading(self) -> dict[tuple[torch.device, str, str], Future[Encoder]]:
        return {}

    def load_ahead(self, device: torch.device, precision: str, attention: str) -> None:
        """Begin to load in a thread what `load_encoder` will return, with its errors."""
        pool = ThreadPoolExecutor(1, "loading")
        how = (device, precision, attention)
        on = device
        if device == torch.device("cuda"):
            # This thread's current GPU, which need not be that of the other thread.
            on = torch.device("cuda", torch.cuda.current_device())
        self._loading[how] = pool.submit(self._load_beside, on, precision, attention)
        pool.shutdown(wait=False)

    def load_encoder(self, device: torch.device, precision: str, attention: str) -> Encoder:
        """Load the weights onto `device` for a run that computes in `precision`.

        Raises:
            RuntimeError: torch's own error, if the weights do not fit the device's memory.
            UsageError: The attention or the precision is not available on the device.
            WeightsError: The file lacks something that the model needs.
        """
        # Taken out, so that the encoder's memory is free when the caller has done with it.
        loading = self._loading.pop((device, precision, attention), None)
        return self._load(device, precision, attention) if loading is None else loading.result()

    def _load_beside(self, device: torch.device, precision: str, attention: str) -> Encoder:
        if device.type != "cuda":
            return self._load(device, precision, attention)
        # Each thread has a current GPU and a current stream. On the stream of the thread that
        # embeds, the copies would stand in line with its batches.
        torch.cuda.set_device(device)
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            encoder = self._load(device, precision, attention)
            torch.cuda.current_stream().synchronize()
        return encoder

    def _load(self, device: torch.device, precision: str, attention: str) -> Encoder:
        load = self.backend.load_encoder
        if self.changes:
            # Other backends do not know the argument.
            load = partial(
                cast("TrainableBackend", self.backend).load_encoder, changes=self.changes
            )
        return load(
            self.weights,
            dtype=DTYPES[self.compute_precision(precision)],
            device=device,
            attention=cast("Attention", attention),
        )

    def load_collator(self) -> Collator:
        """Return the collator that goes with the weights."""
        return self.backend.load_collator(self.weights)

    def make_identity(
        self,
        input_digest: str,
        precision: str,
        chunk_length_bp: int,
        frame_rule: FrameRule = OPEN_RULE,
    ) -> Identity:
        """Return the identity of the parts that a run in `precision` makes of an input."""
        return Identity(
            input_digest=input_digest,
            backend=self.name,
            backend_version=self.loaded.version,
            weights_identity=self.identity,
            # What was really computed in: in a run with fp8, this may be bf16.
            precision=self.compute_precision(precision),
            chunk_length_bp=chunk_length_bp,
            pooling=self.backend.info.pooling,
            embedding_dim=self.weights.embedding_dim,
            frame_rule=str(frame_rule),
        )

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of the model."""
        info = self.backend.info
        about = {
            "name": self.name,
            "distribution": self.loaded.distribution,
            "version": self.loaded.version,
            "alphabet": info.alphabet,
            "pooling": info.pooling,
            "weights": self.weights.location,
            "weights_identity": self.weights.identity,
            "embedding_dim": self.weights.embedding_dim,
        }
        return about | ({"changes_identity": self.changes_identity} if self.changes else {})


class HeldModel(Model):
    """A model whose encoder stays loaded, for many passes in one process."""

    @classmethod
    def of(cls, model: Model) -> HeldModel:
        """Return `model` as one whose encoder stays loaded."""
        held = cls(model.loaded, model.weights, model.changes)
        # With what is known of it: the digest of all weights of a large model takes seconds.
        vars(held).update(vars(model))
        return held

    @cached_property
    def _encoders(self) -> dict[tuple[torch.device, str, str], Encoder]:
        return {}

    def load_encoder(self, device: torch.device, precision: str, attention: str) -> Encoder:
        """Return the encoder, which is loaded when it is first wanted."""
        key = (device, precision, attention)
        if key not in self._encoders:
            self._encoders[key] = super().load_encoder(*key)
        return self._encoders[key]


def open_model(
    name: str, location: str, run: Run | None = None, changes: Changes | None = None
) -> Model:
    """Return the backend called `name` with the weights at `location`.

    In a launch, every process calls this. One process of each machine downloads and digests the
    weights, and tells the other processes what it found.

    Args:
        name: The backend's name.
        location: A file, a directory, a hub id or the name of a published model.
        run: The run whose processes open the model together; None for this process alone.
        changes: What a classifier changes in the weights.

    Raises:
        BackendError: The backend is not installed, or it is broken.
        UsageError: The backend cannot change its weights.
        WeightsError: The weights cannot be used, or they differ between machines.
    """
    loaded = load_backend(name)
    refuse_changes(loaded, changes)
    location = _prefer_cached(find_weights(location, name))
    if run is None:
        return Model(loaded, _open_weights(loaded, location), changes)
    # Eight processes of a machine would read 12 GB eight times, only to find the same digest.
    mine = _open_weights(loaded, location) if run.is_first_on_machine else None
    # Every process must come here, also one that opened nothing: gathering waits for all.
    found = run.gather((machine_name(), mine))
    weights_of = {machine: weights for machine, weights in found if weights is not None}
    model = Model(loaded, weights_of[machine_name()], changes)
    # Machines may hold other files under the same name. Their embeddings must never be mixed.
    identities = set(run.gather((machine_name(), model.identity)))
    if len({identity for _, identity in identities}) > 1:
        listing = ", ".join(f"{machine} has {identity}" for machine, identity in sorted(identities))
        raise WeightsError(
            f"{location}: differs between the machines of this launch ({listing}); give all of "
            "them the same weights, and the same classifier"
        )
    return model


def _open_weights(loaded: LoadedBackend, location: str) -> Weights:
    """Return the opened weights; whatever a strange file breaks becomes an error of ours."""
    try:
        weights = loaded.backend.open_weights(location)
    except (VirnucproError, MemoryError, KeyboardInterrupt, SystemExit, Terminated):
        raise
    # A panic of native code is no Exception.
    except BaseException as error:
        cause = "the files are damaged, or of another kind; -v shows where it failed"
        if isinstance(error, PermissionError):
            cause = "let their owner make the files readable (chmod -R a+rX)"
        raise WeightsError(
            f"{location}: cannot be opened as weights of {loaded.name} "
            f"({type(error).__name__}: {first_line(error, with_file=True)}); {cause}"
        ) from error
    if not isinstance(weights, Weights):
        raise BackendError(
            f"open_weights of backend {loaded.name} returned {brief(weights)}, and Weights were "
            "expected; report this to its authors"
        )
    identity, dim = weights.identity, weights.embedding_dim
    stated = loaded.backend.info.embedding_dim
    if not isinstance(identity, str) or not identity:
        wrong = f"identity {brief(identity)}, and a digest in a string"
    elif type(dim) is not int or dim < 1 or stated not in (None, dim):
        wrong = f"embedding_dim {brief(dim)}, and {stated or 'a positive integer'}"
    else:
        return weights
    raise BackendError(
        f"open_weights of backend {loaded.name} returned Weights with the {wrong} was expected; "
        "report this to its authors"
    )


def refuse_changes(loaded: LoadedBackend, changes: Changes | None) -> None:
    """Make sure that a backend can load its weights with these changes.

    Raises:
        UsageError: It cannot.
    """
    if changes and not loaded.backend.info.linear_layers:
        raise UsageError(
            f"the classifier changes the encoder's weights, and backend {loaded.name} cannot do "
            "that; `virnucpro backends` lists the backends that can be fine-tuned"
        )


def check_backends(config: FramesConfig, changes: Mapping[Alphabet, Changes] = {}) -> None:
    """Check that the backends of a run are there, which takes no weights.

    Raises:
        BackendError: A backend is not installed, or it is broken.
        UsageError: A backend reads the other alphabet, or cannot change its weights.
    """
    for name, alphabet in zip((config.dna_backend, config.protein_backend), ALPHABETS, strict=True):
        loaded = load_backend(name)
        refuse_changes(loaded, changes.get(alphabet))
        found = loaded.backend.info.alphabet
        if found != alphabet:
            raise UsageError(
                f"backend {name} reads {found}, and {alphabet} was wanted; `virnucpro backends` "
                "lists what each one reads"
            )


def _prefer_cached(location: str) -> str:
    """Return `location`, without its pin if only an unpinned ESM-2 3B is in the hub's cache.

    Earlier versions and other programs download it so, and machines without a network have it so.
    """
    unpinned = ESM2_3B.location.partition("@")[0]
    is_default = location == ESM2_3B.location and find_download(location) is None
    if not is_default or find_download(unpinned) is None:
        return location
    logger.warning("%s: is not in the hub's cache; the newest revision there is used", location)
    return unpinned


def open_frame_models(
    run: Run, config: FramesConfig, changes: Mapping[Alphabet, Changes] = {}
) -> list[Model]:
    """Return the DNA model and the protein model of a run.

    Args:
        run: The run whose processes open the models together.
        config: Names the backends and the weights.
        changes: What a classifier changes in the weights, by alphabet.

    Raises:
        BackendError: A backend is not installed, or it is broken.
        WeightsError: Weights cannot be used, or they differ between machines.
        UsageError: A backend reads the other alphabet, or cannot change its weights.
    """
    check_backends(config, changes)
    # Before the models are opened, so that torch is imported for the workers at the same time.
    prepare_workers(config, run.device)
    return [
        open_model(config.dna_backend, config.dna_weights, run, changes.get("dna")),
        open_model(config.protein_backend, config.protein_weights, run, changes.get("protein")),
    ]
