"""The ESM-2 network: packed sequences without padding, and mean pooling over residues.

It computes what fair-esm 2.0.0's `ESM2` does (https://github.com/facebookresearch/esm, MIT).

Shapes: B sequences in a batch, T tokens of all of them together, P positions, D width of the hidden
states, F width of the feed-forward, H heads, K numbers in a head (D = H * K), R = K / 2 rotary
frequencies, V words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from virnucpro.backend.interface import Attention, TokenBatch
from virnucpro.backend.model_settings import DEFAULT_ROPE_THETA
from virnucpro.errors import UsageError
from virnucpro.kernels import choose_attention, float8, onednn, plain
from virnucpro.kernels.float8 import Float8Linear
from virnucpro.kernels.halves import embed_halves
from virnucpro_esm2 import MAX_RESIDUES, MIN_FP8_TOKENS, NUM_SPECIAL_TOKENS
from virnucpro_esm2.attention import Attend, Packing, attend_packed, attend_sdpa, choose_attend
from virnucpro_esm2.rotary import Rotary, default_frequencies, interleave, make_rotary, rotate
from virnucpro_esm2.tokens import TOKENS

MAX_TOKENS = MAX_RESIDUES + NUM_SPECIAL_TOKENS

TOKEN_DROPOUT_SCALE = 1 - 0.15 * 0.8
"""Training masked 15 % of the tokens, 80 % of these by zeros. So token embeddings are scaled."""

MAX_BOUND_RATIO = 16
"""How much the bounds of the values may differ in a layer with one scale in 8 bits.

With one scale, numbers lose digits when they are over 2^15 times smaller than the largest one.
Attended values are about 2^9 times smaller than their bound, so this ratio leaves some room."""

NUM_EXACT_LAYERS = 2
"""The first layers never multiply in 8 bits.

In 8 bits they turn the attention of some proteins to other tokens (docs/notes/performance.md, "What
fp8 loses with trained weights").
"""


@dataclass(frozen=True, slots=True)
class Esm2Config:
    """The sizes of one ESM-2.

    Attributes:
        num_layers: Transformer layers.
        embed_dim: Width; also the embedding's dimension.
        num_heads: Attention heads; divide `embed_dim`.
        ffn_dim: Width of the feed-forward's hidden layer.
        layer_norm_eps: Added to the variance in layer norms.
        token_dropout: Whether token embeddings are scaled by 0.88, as in all published ESM-2.
        rope_theta: The base of the rotary frequencies.
    """

    num_layers: int
    embed_dim: int
    num_heads: int
    ffn_dim: int
    layer_norm_eps: float = 1e-5
    token_dropout: bool = True
    rope_theta: float = DEFAULT_ROPE_THETA

    @property
    def head_dim(self) -> int:
        """Numbers in one attention head."""
        return self.embed_dim // self.num_heads


class Between(NamedTuple):
    """The operations between the matrix products of a layer, chosen once for each batch.

    The input of a product is a tensor, or `float8.Rows` if the layer's products are in 8 bits.

    Attributes:
        attend: From queries, keys and values (T, 3, H, K) and the layer's `value_bound` to the
            attended values (T, D).
        linear_add: From a linear layer, its input and hidden states to two tensors, whose sum is
            the next hidden states. The second may be None.
        add_norm: From hidden states, a tensor to add and a layer norm to the sum and its norm.
        linear_gelu: From a linear layer and its input to the GELU (T, F).
        norm_sum: As `add_norm`, but returns only the norm, always as a tensor.
    """

    attend: Callable[[Tensor, Tensor | None], Any]
    linear_add: Callable[[Any, Any, Tensor], tuple[Tensor, Tensor | None]]
    add_norm: Callable[[Tensor, Tensor | None, Any], tuple[Tensor, Any]]
    linear_gelu: Callable[[Any, Any], Any]
    norm_sum: Callable[[Tensor, Any, Any], Tensor]


class Esm2Layer(nn.Module):
    """One transformer layer with layer norms first; one matrix makes queries, keys and values.

    Attributes:
        is_quantized: Whether products are in 8 bits.
        value_bound: A float32 scalar that no value of attention exceeds, if products are in 8 bits.
            None if the values are too different in size for one scale.
    """

    value_bound: Tensor | None

    def __init__(self, config: Esm2Config, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        dim, ffn_dim, eps = config.embed_dim, config.ffn_dim, config.layer_norm_eps
        self.num_heads = config.num_heads
        self.is_quantized = False
        # Not persistent: the bound follows from the weights, so no file holds it.
        self.register_buffer("value_bound", None, persistent=False)
        self.attention_norm = nn.LayerNorm(dim, eps, dtype=dtype, device=device)
        # One product in place of three reads its input once.
        self.qkv = nn.Linear(dim, 3 * dim, dtype=dtype, device=device)
        self.out = nn.Linear(dim, dim, dtype=dtype, device=device)
        self.ffn_norm = nn.LayerNorm(dim, eps, dtype=dtype, device=device)
        self.fc1 = nn.Linear(dim, ffn_dim, dtype=dtype, device=device)
        self.fc2 = nn.Linear(ffn_dim, dim, dtype=dtype, device=device)

    def forward(
        self, hidden_TD: Tensor, delta_TD: Tensor | None, between: Between
    ) -> tuple[Tensor, Tensor | None]:
        """Return the next hidden states (T, D) as two tensors, whose sum they are.

        The next layer adds them, if `linear_add` has not, because `add_norm` adds and normalizes in
        one pass.
        """
        hidden_TD, normed = between.add_norm(hidden_TD, delta_TD, self.attention_norm)
        qkv_T3HK = self.qkv(normed).unflatten(1, (3, self.num_heads, -1))
        attended = between.attend(qkv_T3HK, self.value_bound)
        hidden_TD, delta_TD = between.linear_add(self.out, attended, hidden_TD)
        hidden_TD, normed = between.add_norm(hidden_TD, delta_TD, self.ffn_norm)
        return between.linear_add(self.fc2, between.linear_gelu(self.fc1, normed), hidden_TD)

    def quantize(self) -> None:
        """Quantize the weights as they are now, and multiply in 8 bits from now on."""
        self.is_quantized = True
        # Before the weights are rounded: the bound allows for that rounding by itself.
        self.value_bound = self._bound_values()
        for name in ("qkv", "out", "fc1", "fc2"):
            setattr(self, name, Float8Linear(getattr(self, name)))

    def _bound_values(self) -> Tensor | None:
        """Return `value_bound`.

        The norm of a normalized token is at most the square root of D. So its product with a row of
        weights is at most that times the norm of the row (Cauchy and Schwarz).
        """
        norm, dim = self.attention_norm, self.qkv.in_features
        # The last third of the matrix makes the values.
        weight_DD = self.qkv.weight[2 * dim :].float()
        # The norm's own weights scale each number of a token, so they go into the row of weights.
        spread_D = (weight_DD * norm.weight.float()).norm(dim=1) * dim**0.5
        centre_D = weight_DD @ norm.bias.float() + self.qkv.bias[2 * dim :].float()
        # Squared, because both the tokens and the weights are rounded to 8 bits first.
        bound_D: Tensor = (spread_D + centre_D.abs()) * float8.MAX_ROUNDING**2
        if bound_D.max() > MAX_BOUND_RATIO * bound_D.min():
            return None
        return bound_D.max().clamp(min=float8.MIN_ROW_MAX)


class Esm2(nn.Module):
    """An ESM-2 without its heads; see `virnucpro.backend.interface.Encoder`.

    The parameters are made on the `meta` device, without memory. `give_memory` gives them memory.
    Who fills them must also call `set_rotary`.
    """

    cos_PR: Tensor
    sin_PR: Tensor

    def __init__(
        self,
        config: Esm2Config,
        *,
        dtype: torch.dtype,
        attend: Attend = attend_sdpa,
        fused: bool = False,
    ) -> None:
        super().__init__()
        meta = torch.device("meta")
        dim, eps = config.embed_dim, config.layer_norm_eps
        self.config = config
        self.exact_layers: list[nn.Module] | None = None
        self.is_packed = False
        self.attend = attend
        self.fused = fused
        # Without random numbers: drawing them on the meta device imports torch's compiler, 1.4 s.
        words_VD = torch.empty(len(TOKENS), dim, dtype=dtype, device=meta)
        self.embed_tokens = nn.Embedding(len(TOKENS), dim, _weight=words_VD)
        self.layers = nn.ModuleList(
            Esm2Layer(config, dtype, meta) for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(dim, eps, dtype=dtype, device=meta)
        # float32 for any precision: in half precision, cosines and sines would lose digits.
        angles_PR = torch.empty(MAX_TOKENS, config.head_dim // 2, device=meta)
        self.register_buffer("cos_PR", angles_PR, persistent=False)
        self.register_buffer("sin_PR", angles_PR, persistent=False)

    def quantize(self) -> None:
        """Quantize the weights as they are now, and multiply in 8 bits where that is near enough.

        The first layers stay as they were, and so do all layers for batches of short proteins.
        """
        # A list and no module: these are the layers of one model again, and count only once.
        self.exact_layers = list(self.layers)
        for number in range(NUM_EXACT_LAYERS, len(self.layers)):
            layer = copy.deepcopy(cast(Esm2Layer, self.layers[number]))
            layer.quantize()
            self.layers[number] = layer

    def pack(self) -> None:
        """Pack the weights as they are now, and multiply through oneDNN from now on."""
        self.is_packed = True
        for layer in cast("list[Esm2Layer]", self.layers):
            if layer.qkv.weight.dtype != torch.float32:
                interleave(layer.qkv, self.config.head_dim)
            onednn.pack_linears(layer)

    @property
    def has_own_kernels(self) -> bool:
        """Whether `torch.compile` would have nothing left to fuse."""
        return self.fused or self.is_packed

    def give_memory(self, device: torch.device) -> Esm2:
        """Give all parameters and tables memory on `device`, with undefined numbers, in place."""
        # Not torch's `to_empty`: on the meta device it imports sympy, for a second or more. No
        # other thread gets far meanwhile, so the DNA pass nearly stood still.
        self._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device=device))  # type: ignore[no-untyped-call]
        return self

    def set_rotary(self, frequencies_R: Tensor) -> None:
        """Fill the tables of rotary angles, in float32 for any precision of the weights."""
        angles_PR = torch.outer(torch.arange(MAX_TOKENS).float(), frequencies_R.float().cpu())
        self.cos_PR.copy_(angles_PR.cos())
        self.sin_PR.copy_(angles_PR.sin())

    def forward(self, batch: TokenBatch) -> Tensor:
        """Return float32 (B, D): the mean of each sequence's last hidden states over residues.

        The CPU never waits for the GPU here, except in attention `by_length`.
        """
        return embed_halves(self._embed, batch) if self.is_packed else self._embed(batch)

    def _embed(self, batch: TokenBatch) -> Tensor:
        lengths_B = batch.lengths_B
        ends_B = lengths_B.cumsum(0)
        starts_B = ends_B - lengths_B
        # int32, because that is what flash-attn, torch's own kernel and ours read.
        packing = Packing(lengths_B, F.pad(ends_B, (1, 0)).to(torch.int32), batch.max_length)
        token_ids_T, num_tokens = batch.token_ids_T, len(batch.token_ids_T)
        if self.is_packed:
            token_ids_T = F.pad(token_ids_T, (0, -num_tokens % onednn.ROW_MULTIPLE))
        hidden_TD = self.embed_tokens(token_ids_T)
        if self.config.token_dropout:
            hidden_TD = hidden_TD * TOKEN_DROPOUT_SCALE
        between, between_8 = self._choose_between(packing, num_tokens)
        layers: Iterable[nn.Module] = self.layers
        # The mean over a few tokens keeps most of the errors of 8 bits.
        if self.exact_layers is not None and packing.max_length < MIN_FP8_TOKENS:
            layers = self.exact_layers
        # The first layer has nothing to add: no layer came before it.
        delta_TD = None
        for layer in layers:
            chosen = between_8 if layer.is_quantized else between
            hidden_TD, delta_TD = layer(hidden_TD, delta_TD, chosen)
        # In float32, because a sum of a thousand tokens in half precision loses digits.
        hidden_TD = between.norm_sum(hidden_TD, delta_TD, self.final_norm)[:num_tokens].float()
        # BOS and EOS do not count in the mean.
        hidden_TD.index_fill_(0, torch.cat((starts_B, ends_B - 1)), 0.0)
        # `unsafe` skips a check of the lengths, for which the CPU would wait for the GPU.
        sum_BD = torch.segment_reduce(hidden_TD, "sum", lengths=lengths_B, unsafe=True)
        return sum_BD / (lengths_B - NUM_SPECIAL_TOKENS)[:, None]

    def _choose_between(self, packing: Packing, num_tokens: int) -> tuple[Between, Between]:
        """Return the operations of layers in the model's precision, and of layers in 8 bits."""
        kernels: ModuleType = onednn if self.is_packed else plain
        if self.fused:
            from virnucpro.kernels import fused

            kernels = fused
        # `fused` rotates inside its kernel, and `attend_packed` in its own way.
        rotates = not (self.fused or self.is_packed)
        rotary = self._make_rotary(packing, num_tokens) if rotates else None
        lengths = packing.lengths_B.tolist() if self.is_packed else []
        where, angles = (packing.offsets, packing.max_length), (self.cos_PR, self.sin_PR)

        def attend(qkv_T3HK: Tensor, value_bound: Tensor | None) -> Tensor:
            if self.is_packed:
                return attend_packed(qkv_T3HK, lengths, *angles)
            if rotary is None:
                attended_THK: Tensor = kernels.attend(qkv_T3HK, *where, angles=angles)
                return attended_THK.flatten(1)
            dtype = qkv_T3HK.dtype
            # On CPUs torch attends faster in float32, and the rotation returns float32 anyway.
            inner = torch.float32 if qkv_T3HK.device.type == "cpu" else dtype
            q_THK, k_THK = rotate(qkv_T3HK[:, :2], rotary).to(inner).unbind(1)
            v_THK = qkv_T3HK[:, 2].to(inner)
            return self.attend(q_THK, k_THK, v_THK, packing).to(dtype).flatten(1)

        def attend_8(qkv_T3HK: Tensor, value_bound: Tensor | None) -> Any:
            if value_bound is None:
                return kernels.quantize(attend(qkv_T3HK, None))
            if rotary is None:
                return kernels.attend_quantize(qkv_T3HK, *where, value_bound, angles=angles)
            return plain.quantize(attend(qkv_T3HK, None), value_bound)

        between = Between(
            attend, kernels.linear_add, kernels.add_norm, kernels.linear_gelu, kernels.norm_sum
        )
        if self.exact_layers is None:
            return between, between
        return between, Between(
            attend_8,
            kernels.linear_add,
            kernels.add_norm_quantize,
            lambda linear, rows: kernels.gelu_quantize(linear(rows)),
            kernels.norm_sum,
        )

    def _make_rotary(self, packing: Packing, num_tokens: int) -> Rotary:
        starts_B, lengths_B = packing.offsets[:-1], packing.lengths_B
        # Without `output_size`, the CPU would wait for the GPU to learn the size.
        starts_T = starts_B.repeat_interleave(lengths_B, output_size=num_tokens)
        position_T = torch.arange(num_tokens, device=starts_T.device) - starts_T
        return make_rotary(self.cos_PR[position_T], self.sin_PR[position_T])


def make_empty_model(
    config: Esm2Config, *, dtype: torch.dtype, device: torch.device, attention: Attention
) -> Esm2:
    """Return the model in eval mode on `device`, with undefined numbers as its weights.

    For `float8.DTYPE` it is a bfloat16 model; call `quantize` when it has its weights.

    Raises:
        UsageError: `attention`, or a model of these sizes, does not work in `dtype` on `device`.
    """
    if dtype == float8.DTYPE:
        if config.embed_dim % float8.SIZE_MULTIPLE or config.ffn_dim % float8.SIZE_MULTIPLE:
            raise UsageError(
                f"precision fp8 needs sizes that are multiples of {float8.SIZE_MULTIPLE}, found a "
                f"model of width {config.embed_dim} and {config.ffn_dim}; use bf16"
            )
        # 8 bits are for products of matrices only. Everything else of the model is bfloat16.
        dtype = torch.bfloat16
    head_dim = config.head_dim
    kernel = choose_attention(attention, head_dim=head_dim, dtype=dtype, device=device)
    attend = choose_attend(kernel, head_dim=head_dim, dtype=dtype, device=device)
    model = Esm2(config, dtype=dtype, attend=attend, fused=kernel == "fused")
    model.give_memory(device)
    model.set_rotary(default_frequencies(config.head_dim, config.rope_theta))
    return model.eval().requires_grad_(False)
