"""Times each of our kernels, what torch takes for the same, and the floor that memory sets.

It needs a CUDA GPU and no files.

    python -m tools.benchmark_kernels
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from triton.testing import do_bench
from virnucpro_dnabert_s.attention import alibi_slopes
from virnucpro_esm2.attention import Packing, attend_varlen
from virnucpro_esm2.rotary import default_frequencies, make_rotary, rotate

from virnucpro.embedding.measuring import measure_ceilings
from virnucpro.kernels import float8, fused, plain

DEVICE = torch.device("cuda")
NUM_TOKENS = 32768


def random(*shape: int) -> Tensor:
    """Return bf16 random numbers."""
    return torch.randn(shape, device=DEVICE).bfloat16()


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call whose inputs are not in the cache."""
    return float(do_bench(call, warmup=5, rep=50, return_mode="median"))


def print_row(
    name: str, fused_call: Callable[[], object], torch_call: Callable[[], object] | None, size: int
) -> None:
    """Print both times, and the time of moving `size` bf16 numbers at the speed of a copy."""
    floor = size * 2 / CEILINGS.copy_bytes_per_s * 1e3
    torch_time = f"{milliseconds(torch_call):>8.3f}" if torch_call else f"{'':>8}"
    print(f"{name:<36} {milliseconds(fused_call):>8.3f} {torch_time} {floor:>8.3f}", flush=True)


def time_attention(num_heads: int, length: int, *, rotary: bool) -> None:
    """Time attention of heads of 64 in sequences of one length."""
    num_sequences = NUM_TOKENS // length
    num_tokens = num_sequences * length
    qkv_T3HK = random(num_tokens, 3, num_heads, 64)
    offsets = torch.arange(0, num_tokens + 1, length, dtype=torch.int32, device=DEVICE)
    size = 4 * num_tokens * num_heads * 64
    if not rotary:
        slopes_H = alibi_slopes(num_heads, DEVICE)
        name = f"attention with ALiBi, {length} tokens"
        call = lambda: fused.attend(qkv_T3HK, offsets, length, slopes_H=slopes_H)  # noqa: E731
        print_row(name, call, None, size)
        return
    angles_PR = torch.outer(torch.arange(length), default_frequencies(64)).to(DEVICE)
    angles = angles_PR.cos(), angles_PR.sin()
    per_token = make_rotary(*(x.repeat(num_sequences, 1) for x in angles))
    packing = Packing(offsets.diff().long(), offsets, length)

    def torch_call() -> Tensor:
        q_THK, k_THK = rotate(qkv_T3HK[:, :2], per_token).to(qkv_T3HK.dtype).unbind(1)
        return attend_varlen(q_THK, k_THK, qkv_T3HK[:, 2], packing)

    name = f"rotary and attention, {length} tokens"
    print_row(
        name, lambda: fused.attend(qkv_T3HK, offsets, length, angles=angles), torch_call, size
    )


def time_norm(width: int) -> None:
    """Time residual and layer norm, with and without keeping the sum."""
    hidden_TD, delta_TD = random(NUM_TOKENS, width), random(NUM_TOKENS, width)
    norm = nn.LayerNorm(width, device=DEVICE, dtype=torch.bfloat16)
    for name, ours, theirs, passes in (
        ("residual, norm and sum", fused.add_norm, plain.add_norm, 4),
        ("residual and norm", fused.norm_sum, plain.norm_sum, 3),
    ):
        print_row(
            f"{name}, width {width}",
            functools.partial(ours, hidden_TD, delta_TD, norm),
            functools.partial(theirs, hidden_TD, delta_TD, norm),
            passes * hidden_TD.numel(),
        )


def time_8_bits() -> None:
    """Time what 8 bits add; in the floors, an 8-bit number counts half."""
    hidden_TD, delta_TD, x_TF = (random(NUM_TOKENS, width) for width in (2560, 2560, 10240))
    norm = nn.LayerNorm(2560, device=DEVICE, dtype=torch.bfloat16)
    print_row(
        "to 8 bits, width 2560",
        lambda: fused.quantize(hidden_TD),
        lambda: plain.quantize(hidden_TD),
        hidden_TD.numel() * 3 // 2,
    )
    print_row(
        "GELU to 8 bits, width 10240",
        lambda: fused.gelu_quantize(x_TF),
        lambda: plain.gelu_quantize(x_TF),
        x_TF.numel() * 3 // 2,
    )
    print_row(
        "residual, sum and norm to 8 bits",
        lambda: fused.add_norm_quantize(hidden_TD, delta_TD, norm),
        lambda: plain.add_norm_quantize(hidden_TD, delta_TD, norm),
        hidden_TD.numel() * 7 // 2,
    )


def time_products() -> None:
    """Time the products of one layer of ESM-2 3B, with GELU in the epilogue, and in 8 bits.

    The column of torch is the plain product in bf16. The floor counts bytes only.
    """
    for name, num_in, num_out in (
        ("queries, keys, values", 2560, 3 * 2560),
        ("attention's output", 2560, 2560),
        ("feed-forward, in", 2560, 10240),
        ("feed-forward, out", 10240, 2560),
    ):
        x_TK = random(NUM_TOKENS, num_in)
        linear = nn.Linear(num_in, num_out, device=DEVICE, dtype=torch.bfloat16)
        layer, rows = float8.Float8Linear(linear), fused.quantize(x_TK)
        size = NUM_TOKENS * (num_in + num_out) + num_in * num_out
        print_row(f"{name}: 8 bits", lambda: layer(rows), lambda: linear(x_TK), size)  # noqa: B023
    linear = nn.Linear(2560, 10240, device=DEVICE, dtype=torch.bfloat16)
    x_TD = random(NUM_TOKENS, 2560)
    print_row(
        "feed-forward, in, and GELU",
        lambda: fused.linear_gelu(linear, x_TD),
        lambda: plain.linear_gelu(linear, x_TD),
        NUM_TOKENS * (2560 + 10240) + 2560 * 10240,
    )


@torch.inference_mode()
def main() -> None:
    """Print one line for each kernel and shape of ESM-2 3B and DNABERT-S."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, {NUM_TOKENS} tokens")
    print(
        f"copy {CEILINGS.copy_bytes_per_s / 1e12:.2f} TB/s, "
        f"matrix product {CEILINGS.flop_per_s['bf16'] / 1e12:.0f} TFLOP/s"
    )
    print(f"{'milliseconds':<36} {'fused':>8} {'torch':>8} {'floor':>8}")
    for length in (52, 162, 1026):
        time_attention(40, length, rotary=True)
    for length in (109, 1000):
        time_attention(12, length, rotary=False)
    for width in (2560, 768):
        time_norm(width)
    time_8_bits()
    y_TF = random(NUM_TOKENS, 2 * 3072)
    print_row(
        "GEGLU, width 3072",
        lambda: fused.geglu(y_TF),
        lambda: plain.geglu(y_TF),
        3 * y_TF.numel() // 2,
    )
    time_products()


if __name__ == "__main__":
    CEILINGS = measure_ceilings(DEVICE, ["bf16"])
    main()
