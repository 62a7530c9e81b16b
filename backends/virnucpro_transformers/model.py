"""The encoder: padded batches through a model of transformers, and means over tokens.

Shapes: B sequences in a batch, L tokens of the longest one, D width, S special tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from virnucpro.backend.changes import Changes, apply_change, check_changes
from virnucpro.backend.interface import Attention, TokenBatch
from virnucpro.backend.tokens import mark_tokens, mean_where, pad_tokens
from virnucpro.backend.trainable import checkpoint_layers
from virnucpro.backend.weights import find_weight_files
from virnucpro.errors import UsageError, WeightsError, count_who, first_line
from virnucpro_transformers.tokens import load_tokenizer
from virnucpro_transformers.weights import guarded, import_transformers

_IMPLEMENTATIONS = {"eager": "eager", "sdpa": "sdpa", "flash": "flash_attention_2"}

# Parts above the last layer, which masked models often lack.
_UNUSED = ("pooler", "contact_head")


class AutoEncoder(nn.Module):
    """A model of transformers that reads packed tokens and returns means over tokens."""

    special_ids_S: Tensor

    def __init__(self, model: nn.Module, pad_id: int, special_ids_S: Tensor) -> None:
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.register_buffer("special_ids_S", special_ids_S, persistent=False)

    def train(self, mode: bool = True) -> AutoEncoder:
        """Set the mode of this module alone: in training, the model would drop numbers."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return float32 (B, D): each sequence's mean over its tokens without special ones."""
        # AutoModel knows no packed sequences, so they are padded again on the device.
        token_ids_BL = pad_tokens(batch, self.pad_id)
        is_token_BL = mark_tokens(batch)
        output = self.model(input_ids=token_ids_BL, attention_mask=is_token_BL.long())
        # Told by their ids: which special tokens there are, and where, differs between models.
        is_counted_BL = is_token_BL & ~torch.isin(token_ids_BL, self.special_ids_S)
        return mean_where(output.last_hidden_state, is_counted_BL)


def load_model(
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: Attention,
    changes: Changes | None = None,
) -> AutoEncoder:
    """Return the model in a directory, without the head on top of its last layer.

    Raises:
        WeightsError: The files do not hold what the model needs, or `changes` do not fit it.
        UsageError: The model does not have this attention.
    """
    tokenizer = load_tokenizer(path)
    # Unknown and masked letters are letters of the sequence.
    letters = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    special_ids = [number for number in tokenizer.all_special_ids if number not in letters]
    if tokenizer.pad_token_id is None:
        raise WeightsError(f"{path}: its tokenizer has no padding; wanted the model of an encoder")
    with guarded(path):
        model = _load(path, dtype, attention).to(device).eval().requires_grad_(False)
    special_ids_S = torch.tensor(special_ids, device=device)
    encoder = AutoEncoder(model, tokenizer.pad_token_id, special_ids_S).eval()
    if changes:
        parameters = dict(encoder.named_parameters())
        check_changes(changes, {name: tensor.shape for name, tensor in parameters.items()})
        with guarded(path):
            # What is in the files: `model` may have been rounded already.
            exact = dict(_load(path, torch.float32, attention).named_parameters())
        for name, change in changes.items():
            parameters[name].copy_(apply_change(exact[name.removeprefix("model.")], change))
    return encoder


def load_trainable(
    path: Path, *, dtype: torch.dtype, device: torch.device, gradient_checkpointing: bool = False
) -> AutoEncoder:
    """Return the model to train; see `virnucpro.backend.interface.TrainableBackend`.

    Raises:
        WeightsError: The files do not hold what the model needs.
    """
    encoder = load_model(path, dtype=dtype, device=device, attention="auto")
    for name in _UNUSED:
        # No embedding depends on it, so it would have no gradient.
        if getattr(encoder.model, name, None) is not None:
            setattr(encoder.model, name, None)
    if gradient_checkpointing:
        checkpoint_layers(encoder)
    return encoder


def _load(path: Path, dtype: torch.dtype, attention: Attention) -> Any:
    settings: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": False,
        # Said, so that transformers reads the very file that was digested.
        "use_safetensors": find_weight_files(path)[0].suffix == ".safetensors",
        "output_loading_info": True,
    }
    if attention != "auto":
        settings["attn_implementation"] = _IMPLEMENTATIONS[attention]
    try:
        model, found = import_transformers().AutoModel.from_pretrained(path, **settings)
    except (ImportError, ValueError) as error:
        if attention == "auto":
            raise
        raise UsageError(
            f"attention {attention}: {path} does not load with it ({first_line(error)}); use auto"
        ) from error
    # What a file lacks would be random numbers; buffers, such as rotary frequencies, are computed.
    learned = {name for name, _ in model.named_parameters() if name.split(".")[0] not in _UNUSED}
    missing = sorted(learned.intersection(found["missing_keys"]))
    if missing or found["mismatched_keys"]:
        others = count_who(len(found["mismatched_keys"]), "tensor", "have")
        raise WeightsError(
            f"{path}: {count_who(len(missing), 'tensor', 'are')} missing (first: "
            f"{missing[0] if missing else 'none'}), and {others} another shape; the files are "
            "incomplete or of another model"
        )
    return model
