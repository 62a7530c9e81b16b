"""Attention over packed sequences, by torch, flash-attn and oneDNN.

Shapes: B sequences in a batch, T tokens of all of them together, L tokens of one sequence, H heads,
K numbers in a head.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from virnucpro.backend.interface import Attention
from virnucpro.errors import UsageError
from virnucpro.kernels import onednn


class Packing(NamedTuple):
    """Where the sequences of a batch lie among its T tokens.

    Attributes:
        lengths_B: int64, tokens of each sequence.
        offsets: int32 (B + 1,), where each sequence starts, and T.
        max_length: The largest of `lengths_B`, on the host.
    """

    lengths_B: Tensor
    offsets: Tensor
    max_length: int


Attend = Callable[[Tensor, Tensor, Tensor, Packing], Tensor]
"""Queries, keys and values (T, H, K each) of packed sequences to the attended values (T, H, K)."""


def _attend_by_length(
    q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, lengths_B: Tensor, kind: str
) -> Tensor:
    """Return the attention of each run of sequences of one length after the other.

    No padding, and no sequence can touch another. Batches are sorted, so runs are long. On CUDA it
    waits for the lengths.
    """
    attend_BHLK = _ATTEND_BHLK[kind]
    runs = [(length, sum(run)) for length, run in groupby(lengths_B.tolist())]
    sizes = [size for _, size in runs]
    pieces = zip(*(torch.split(x, sizes) for x in (q_THK, k_THK, v_THK)), strict=True)
    attended = []
    for (length, _), piece in zip(runs, pieces, strict=True):
        q_BHLK, k_BHLK, v_BHLK = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in piece)
        attended.append(attend_BHLK(q_BHLK, k_BHLK, v_BHLK).transpose(1, 2).flatten(0, 1))
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def _eager_attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
    """Return softmax(Q K^T / sqrt(K)) V written out, the softmax in float32."""
    scores_BHLL = (q_BHLK * q_BHLK.shape[-1] ** -0.5) @ k_BHLK.transpose(-1, -2)
    weights_BHLL: Tensor = scores_BHLL.softmax(-1, dtype=torch.float32).to(v_BHLK.dtype)
    return weights_BHLL @ v_BHLK


_ATTEND_BHLK: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "eager": _eager_attention,
    "sdpa": F.scaled_dot_product_attention,
    "onednn": onednn.attend,
}

# An operator of its own, so that torch.compile does not look inside: every batch has other lengths,
# and it would never be done.
_by_length_op = torch.library.custom_op(
    "virnucpro_esm2::attend_by_length",
    _attend_by_length,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor lengths, str kind) -> Tensor",
)
_by_length_op.register_fake(lambda q_THK, *_: q_THK.new_empty(q_THK.shape))


def by_length(kind: str) -> Attend:
    """Return packed attention that runs everywhere: `eager`, torch's `sdpa`, or `onednn`."""

    def attend(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing) -> Tensor:
        # Calling an operator of ours imports torch's compiler.
        call = _by_length_op if torch.compiler.is_compiling() else _attend_by_length
        return call(q_THK, k_THK, v_THK, packing.lengths_B, kind)

    return attend


attend_eager = by_length("eager")
attend_sdpa = by_length("sdpa")
attend_onednn = by_length("onednn")


def attend_varlen(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing) -> Tensor:
    """Return the attention of the FlashAttention-2 inside torch: CUDA, bf16 or fp16."""
    from torch.nn.attention.varlen import varlen_attn

    # These seven arguments mean the same from torch 2.10 to 2.13; scale and mask are the defaults.
    offsets, longest = packing.offsets, packing.max_length
    return cast(Tensor, varlen_attn(q_THK, k_THK, v_THK, offsets, offsets, longest, longest))


def load_flash_attend(*, dtype: torch.dtype, device: torch.device) -> Attend:
    """Return the attention of the package flash-attn.

    Raises:
        UsageError: flash-attn is not installed or does not work with `dtype` and `device`.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        raise UsageError(
            f"attention flash needs a CUDA GPU and bf16 or fp16, found {device.type} and "
            f"{str(dtype).removeprefix('torch.')}; use attention sdpa, which runs everywhere"
        )
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise UsageError(
            f"attention flash needs the package flash-attn, which cannot be imported ({error}); "
            "build it for your torch and CUDA (pip install flash-attn --no-build-isolation), or "
            "use attention sdpa, which has FlashAttention-2 from torch itself"
        ) from error

    def attend(q_THK: Tensor, k_THK: Tensor, v_THK: Tensor, packing: Packing) -> Tensor:
        offsets, longest = packing.offsets, packing.max_length
        return cast(
            Tensor, flash_attn_varlen_func(q_THK, k_THK, v_THK, offsets, offsets, longest, longest)
        )

    return attend


def choose_attend(
    attention: Attention, *, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Attend:
    """Return torch's or flash-attn's attention by the name `attention` on this device.

    Raises:
        UsageError: `flash` is not to be had here.
    """
    if attention == "eager":
        return attend_eager
    if attention == "flash":
        return load_flash_attend(dtype=dtype, device=device)
    has_varlen = (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    return attend_varlen if has_varlen else attend_sdpa
