"""A run's settings: frozen, checked in one place, and readable from the fork's YAML."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from virnucpro.errors import UsageError
from virnucpro.logs import reads_settings_first

logger = logging.getLogger(__name__)

STDIN = "-"
"""Stands for standard input where a path is expected."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8")
ATTENTIONS = ("auto", "eager", "sdpa", "flash")
MODEL_TYPES = ("300", "500", "custom")

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_COMPRESSION = frozenset({".gz", ".bz2", ".xz", ".zst"})


def input_stem(path: str | Path) -> str:
    """Return an input's name without its compression's ending and one more: `a.b.fa.gz` is `a.b`.

    Any last ending goes, as in the fork, so that its users find their files under the old names.
    """
    name = Path(path)
    if name.suffix.lower() in _COMPRESSION:
        name = name.with_suffix("")
    return name.stem


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How to compute: what `predict` and `embed` share.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `N`. Several GPUs are used by launching several
            processes, each of which takes its own.
        precision: What the models compute in; `auto` is bf16 on GPUs that have it, fp16 on older
            ones and fp32 on a CPU. A backend that knows no fp8 computes in bf16 instead.
        attention: `flash` needs flash-attn, `sdpa` torch alone, `eager` is the plain reference.
        dataloader_workers: Tokenizing processes per GPU; None for as many as suit the machine.
        pin_memory: Whether batches lie in pinned host memory; None for yes on a GPU.
        cache_clear_interval: Batches between two clearings of CUDA's cache; 0 for never.
        expandable_segments: Let CUDA's allocator grow its segments, against fragmentation, unless
            PYTORCH_ALLOC_CONF says otherwise.

    Raises:
        UsageError: A value is not to be had.
    """

    device: str = "auto"
    precision: str = "auto"
    attention: str = "auto"
    dataloader_workers: int | None = None
    pin_memory: bool | None = None
    cache_clear_interval: int = 100
    expandable_segments: bool = True

    def __post_init__(self) -> None:
        device = f"cuda:{self.device}" if str(self.device).isdigit() else str(self.device)
        if not _DEVICE.fullmatch(device):
            raise UsageError(f"device {self.device!r}: wanted auto, cpu, cuda, cuda:N or N")
        self._set("device", device)
        self._require_one_of("precision", PRECISIONS)
        self._require_one_of("attention", ATTENTIONS)
        self._require_at_least("dataloader_workers", 0)
        self._require_at_least("cache_clear_interval", 0)

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON knows values, for run.json."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _require_one_of(self, name: str, wanted: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in wanted:
            raise UsageError(f"{name} {value!r}: wanted one of {', '.join(wanted)}")

    def _require_at_least(self, name: str, minimum: int) -> None:
        value = getattr(self, name)
        if value is None and type(self).__dataclass_fields__[name].default is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UsageError(f"{name} {value!r}: wanted a whole number, at least {minimum}")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ComputeConfig):
    """What `predict` does.

    Attributes:
        inputs: FASTA or FASTQ files, plain or compressed, or `-` for standard input; a single one
            may be given as it is.
        output_dir: Where results go; by default `{stem}_predictions` in the working directory.
            Required with several inputs or standard input.
        model_type: `300`, `500` or `custom`: which classifier, and so which chunk length.
        model_path: The classifier; by default `{model_type}_model.pth` in the working directory.
        expected_length: Chunk length in bp; by default the model type's, 500 for a custom one.
        dna_backend: Name of the backend that embeds DNA.
        protein_backend: Name of the backend that embeds proteins.
        dna_weights: Its weights: a file, a directory or a hub id (`owner/name[@revision]`).
        protein_weights: Its weights, likewise.
        dnabert_batch_size: Tokens in a batch of the DNA backend; None for the device's default.
        esm_batch_size: Tokens in a batch of the protein backend; None for the device's default.
        min_length: Records shorter than this many bp get no call.
        threshold: A record is called viral from this score on.
        keep_intermediate: Also write the fork's intermediate FASTA files.
        resume: Keep what an earlier run of the same settings finished, and do the rest.
        force: Overwrite an existing output directory. With `resume`, finished work is kept.
        skip_checkpoint_validation: Trust finished parts without reading them again.
        sequences_per_file: Sequences in each of the files that `keep_intermediate` splits.

    Raises:
        UsageError: A value is not to be had, or values do not go together.
    """

    inputs: tuple[str, ...]
    output_dir: Path | None = None
    model_type: str = "500"
    model_path: Path | None = None
    expected_length: int | None = None
    dna_backend: str = "dnabert-s"
    protein_backend: str = "esm2"
    dna_weights: str = "zhihan1996/DNABERT-S@00e47f96cdea35e4b6f5df89e5419cbe47d490c6"
    protein_weights: str = "facebook/esm2_t36_3B_UR50D"
    dnabert_batch_size: int | None = None
    esm_batch_size: int | None = None
    min_length: int = 0
    threshold: float = 0.5
    keep_intermediate: bool = False
    resume: bool = False
    force: bool = False
    skip_checkpoint_validation: bool = False
    sequences_per_file: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.inputs
        paths = (given,) if isinstance(given, str | Path) else given
        self._set("inputs", tuple(str(path) for path in paths))
        for name in ("output_dir", "model_path"):
            if getattr(self, name) is not None:
                self._set(name, Path(getattr(self, name)))
        for name in ("dna_weights", "protein_weights", "model_type"):
            self._set(name, str(getattr(self, name)))
        self._require_one_of("model_type", MODEL_TYPES)
        for name in (
            "expected_length",
            "dnabert_batch_size",
            "esm_batch_size",
            "sequences_per_file",
        ):
            self._require_at_least(name, 1)
        self._require_at_least("min_length", 0)
        self._check_together()

    def _check_together(self) -> None:
        if not self.inputs:
            raise UsageError("no input: wanted at least one FASTA or FASTQ file, or -")
        if self.inputs.count(STDIN) > 1:
            raise UsageError("standard input (-) was given twice, but can be read only once")
        if self.output_dir is None and (len(self.inputs) > 1 or STDIN in self.inputs):
            raise UsageError(
                "several inputs or standard input need an output directory; name one (-o)"
            )
        if self.model_type == "custom" and self.model_path is None:
            raise UsageError("model type custom needs a model; give its path (-p)")
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold {self.threshold}: wanted a score from 0 to 1")

    @property
    def stem(self) -> str:
        """What the result files are named after: the input, or else the output directory."""
        if len(self.inputs) == 1 and self.inputs[0] != STDIN:
            return input_stem(self.inputs[0])
        return self.resolved_output_dir.resolve().name

    @property
    def chunk_length_bp(self) -> int:
        """The length that records are cut into."""
        if self.expected_length is not None:
            return self.expected_length
        return 300 if self.model_type == "300" else 500

    @property
    def resolved_output_dir(self) -> Path:
        """Where results go, given or by default."""
        return self.output_dir or Path(f"{input_stem(self.inputs[0])}_predictions")

    @property
    def resolved_model_path(self) -> Path:
        """Where the classifier is, given or by default."""
        return self.model_path or Path(f"{self.model_type}_model.pth")

    def settings(self) -> dict[str, Any]:
        """Return every setting as JSON knows values, with defaults filled in, for run.json."""
        return super().settings() | {
            "inputs": list(self.inputs),
            "output_dir": str(self.resolved_output_dir),
            "model_path": str(self.resolved_model_path),
            "expected_length": self.chunk_length_bp,
        }


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(ComputeConfig):
    """What `embed` does.

    Attributes:
        input: A FASTA or FASTQ file, plain or compressed, or `-` for standard input.
        backend: Name of the backend, for example `esm2`.
        weights: Its weights: a file, a directory or a hub id (`owner/name[@revision]`).
        output_path: The HDF5 file to write.
        batch_tokens: Tokens in a batch; None for the device's default.
        resume: Keep what an earlier run of the same settings finished, and do the rest.
        force: Overwrite an existing file. With `resume`, finished work is kept.

    Raises:
        UsageError: A value is not to be had.
    """

    input: str
    backend: str
    weights: str
    output_path: Path
    batch_tokens: int | None = None
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("input", str(self.input))
        self._set("weights", str(self.weights))
        self._set("output_path", Path(self.output_path))
        self._require_at_least("batch_tokens", 1)

    @property
    def work_dir(self) -> Path:
        """What is finished, until the output is."""
        return self.output_path.with_name(f"{self.output_path.name}.parts")


class _Key(NamedTuple):
    """What a key of the fork's YAML means: a field of PredictConfig, or nothing any more."""

    field: str | None
    types: tuple[type, ...] = (object,)


_KEYS = {
    "prediction.sequences_per_file": _Key("sequences_per_file", (int,)),
    "prediction.default_model_type": _Key("model_type", (str, int)),
    "prediction.models.300": _Key("model_path", (str,)),
    "prediction.models.500": _Key("model_path", (str,)),
    "device.default": _Key("device", (str, int)),
    "features.dnabert.model_name": _Key("dna_weights", (str,)),
    "features.dnabert.batch_size": _Key("dnabert_batch_size", (int,)),
    "features.esm.model_name": _Key("protein_weights", (str,)),
    "features.esm.toks_per_batch": _Key("esm_batch_size", (int,)),
    "files.auto_cleanup": _Key("keep_intermediate", (bool,)),
} | dict.fromkeys(
    (
        "version",
        "prediction.batch_size",
        "prediction.num_workers",
        "device.fallback_to_cpu",
        "features.dnabert.trust_remote_code",
        "features.esm.truncation_seq_length",
        "features.esm.representation_layer",
        "parallelization.enabled",
        "parallelization.num_workers",
        "checkpointing.enabled",
        "checkpointing.checkpoint_dir",
        "checkpointing.keep_history",
        "files.keep_files",
        "logging.default_level",
        "logging.format",
        "logging.auto_log_file",
        "progress.enabled",
        "progress.bar_width",
        "progress.update_interval",
        "validation.warn_ambiguous_bases",
        "validation.max_ambiguous_percent",
        "validation.check_duplicate_ids",
    ),
    _Key(None),
)
_TYPE_NAMES = {int: "a whole number", str: "text", bool: "true or false"}
_SECTIONS = {name[: dot.start()] for name in _KEYS for dot in re.finditer(r"\.", name)}


def read_settings(path: Path, model_type: str | None = None) -> dict[str, Any]:
    """Return the fields of `PredictConfig` that the fork's YAML file at `path` sets.

    Keys that no longer have a meaning are accepted, and named in one warning. A key without a value
    is as good as absent.

    Args:
        path: The file; docs/command-line.md lists its keys.
        model_type: Given elsewhere, and stronger: it picks the model among `prediction.models`.

    Raises:
        UsageError: The file cannot be read, or has an unknown key or a value of a wrong type.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        found = list(_walk(path, loader, root)) if root is not None else []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as YAML ({reason})") from error
    unused = [name for name, _ in found if _KEYS[name].field is None and name != "version"]
    if unused and reads_settings_first():
        logger.warning(
            "%s: these keys no longer have a meaning and are ignored: %s", path, ", ".join(unused)
        )
    return _make_fields({name: value for name, value in found if value is not None}, model_type)


def _walk(
    path: Path, loader: yaml.SafeLoader, section: yaml.Node, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of all known keys below `section`."""
    if not isinstance(section, yaml.MappingNode):
        where = f"{path}, line {section.start_mark.line + 1}"
        raise UsageError(f"{where}: found {section.value!r}, wanted `key: value` lines")
    for key_node, node in section.value:
        name = f"{prefix}{key_node.value}"
        where = f"{path}, line {key_node.start_mark.line + 1}"
        if name in _SECTIONS:
            if node.tag != "tag:yaml.org,2002:null":
                yield from _walk(path, loader, node, f"{name}.")
        elif name in _KEYS:
            value = loader.construct_object(node, deep=True)
            _check_type(where, name, value)
            yield name, value
        else:
            raise UsageError(f"{where}: unknown key {name!r}{_suggest_key(name)}")


def _check_type(where: str, name: str, value: Any) -> None:
    types = _KEYS[name].types
    # bool is a kind of int in Python, but not here.
    if value is None or types == (object,) or type(value) in types:
        return
    wanted = " or ".join(_TYPE_NAMES[kind] for kind in types)
    raise UsageError(f"{where}: {name} is {value!r}, wanted {wanted}")


def _suggest_key(name: str) -> str:
    known = sorted(_KEYS.keys() | _SECTIONS)
    # A key may also have been put into another section.
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=1) or [
        other for other in known if other.rpartition(".")[2] == last
    ]
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _make_fields(values: dict[str, Any], model_type: str | None) -> dict[str, Any]:
    model_type = model_type or str(values.get("prediction.default_model_type", "500"))
    other_models = {f"prediction.models.{other}" for other in MODEL_TYPES if other != model_type}
    fields = {
        field: value
        for name, value in values.items()
        if name not in other_models and (field := _KEYS[name].field) is not None
    }
    for name in ("model_type", "device"):
        if name in fields:
            fields[name] = str(fields[name])
    if "keep_intermediate" in fields:
        fields["keep_intermediate"] = not fields["keep_intermediate"]
    if PredictConfig.dna_weights.startswith(f"{fields.get('dna_weights')}@"):
        fields["dna_weights"] = PredictConfig.dna_weights
    if re.fullmatch(r"esm2_t\d+_\w+_UR50D", fields.get("protein_weights", "")):
        fields["protein_weights"] = f"facebook/{fields['protein_weights']}"
    return fields
