"""Finds and checks a directory of transformers: settings, tensors, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virnucpro.backend.interface import Weights
from virnucpro.backend.tensors import check_stated_sizes
from virnucpro.backend.weights import (
    digest_files,
    find_weight_files,
    locate_weights,
    read_json,
    read_tensors,
)
from virnucpro.errors import UsageError, WeightsError, first_line
from virnucpro_transformers import TRANSFORMERS

_TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model")
HUB_FILES = ("config.json", "model*.safetensors*", "pytorch_model*.bin*", *_TOKENIZER_FILES)


def open_weights(location: str) -> Weights:
    """Find, digest and check the directory at `location` without loading the model.

    Raises:
        WeightsError: Nothing is there, or it cannot be used.
    """
    path = locate_weights(location, HUB_FILES)
    if not path.is_dir():
        raise WeightsError(
            f"{path}: is a file; wanted a directory with config.json, tensors and a tokenizer, or "
            "a hub id"
        )
    files = find_weight_files(path)
    tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    config = read_config(path)
    # All of them decide the embeddings: settings, tensors and the tokenizer.
    chosen = {path / "config.json", *files}
    for pattern in _TOKENIZER_FILES:
        chosen.update(file for file in path.glob(pattern) if file.is_file())
    dim = getattr(config, "hidden_size", None)
    # The size comes from config.json. A file that contradicts it would fail later, and say less.
    if type(dim) is not int or not any(dim in tensor.shape for tensor in tensors.values()):
        raise WeightsError(f"{path}: hidden_size is {dim!r}, which no tensor of the files has")
    sizes = {name: getattr(config, name, 1) for name in ("num_hidden_layers", "vocab_size")}
    check_stated_sizes(path / "config.json", sizes, tensors)
    return Weights(location, path, digest_files(sorted(chosen)), dim)


def read_config(path: Path) -> Any:
    """Return the settings of the model in a directory.

    Raises:
        WeightsError: transformers does not know the model, or it is no encoder.
    """
    transformers = import_transformers()
    # First by our reader, which explains a damaged file.
    fields = read_json(path / "config.json")
    with guarded(path / "config.json"):
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    # Private, but the only list of what AutoModel can make.
    if type(config) not in transformers.AutoModel._model_mapping:
        raise WeightsError(
            f"{path}: transformers has no AutoModel for a {fields.get('model_type')!r}"
        )
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise WeightsError(f"{path}: is a model with a decoder; wanted an encoder")
    return config


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn what transformers raises in the body into our error, and keep it quiet.

    It raises errors of many kinds for damaged files, and for models with code of their own.
    """
    logging = import_transformers().utils.logging
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # It would warn of tensors of a head, which an embedding does not need.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (UsageError, WeightsError, MemoryError):
        raise
    except Exception as error:
        # The loop handles a lack of memory by itself, so it must see torch's own error.
        if isinstance(error, RuntimeError) and "out of memory" in str(error):
            raise
        reason = first_line(error, with_file=True)
        raise WeightsError(f"{path}: transformers cannot read it ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def import_transformers() -> Any:
    """Return the module transformers.

    Raises:
        UsageError: It is not installed, or cannot be imported.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError(f"this backend {TRANSFORMERS.explain(error)}") from error
    return transformers
