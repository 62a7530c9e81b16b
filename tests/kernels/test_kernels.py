"""The kernels of Triton and oneDNN against plain float64, and what happens without them."""

from __future__ import annotations

import platform
import random
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from virnucpro.backend.interface import TokenBatch
from virnucpro.kernels import can_fuse, float8, onednn, plain
from virnucpro.kernels.halves import embed_halves

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
HALF_PRECISIONS = [torch.bfloat16, torch.float16]
# Of the largest entry: inputs are given, so what is left is the rounding of weights and results.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture
def fused() -> ModuleType:
    from virnucpro.kernels import fused

    return fused


def make_ragged_lengths(seed: int) -> list[int]:
    source = random.Random(seed)
    return [1, 63, 64, 65, 1200, *(source.randint(1, 300) for _ in range(10))]


def make_offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], device=CUDA).cumsum(0).to(torch.int32)


def make_angles(num_positions: int, num_frequencies: int) -> tuple[Tensor, Tensor]:
    frequencies_R = 10000.0 ** -(torch.arange(num_frequencies, device=CUDA) / num_frequencies)
    angles_PR = torch.outer(torch.arange(num_positions, device=CUDA).float(), frequencies_R)
    return angles_PR.cos(), angles_PR.sin()


def attend_in_float64(
    qkv_T3HK: Tensor,
    lengths: list[int],
    angles: tuple[Tensor, Tensor] | None,
    slopes_H: Tensor | None,
) -> Tensor:
    return torch.cat(
        [_attend_one(qkv_L3HK, angles, slopes_H) for qkv_L3HK in qkv_T3HK.double().split(lengths)]
    )


def _attend_one(
    qkv_L3HK: Tensor, angles: tuple[Tensor, Tensor] | None, slopes_H: Tensor | None
) -> Tensor:
    length = len(qkv_L3HK)
    query, key, value = qkv_L3HK.transpose(0, 2).unbind(1)  # (H, L, K)
    if angles is not None:
        cos, sin = (angle_PR[:length].double() for angle_PR in angles)

        def rotate(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        query, key = rotate(query), rotate(key)
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    if slopes_H is not None:
        position = torch.arange(length, device=scores.device)
        scores -= slopes_H.double()[:, None, None] * (position[:, None] - position).abs()
    return (scores.softmax(-1) @ value).transpose(0, 1)


def deviation(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
@pytest.mark.parametrize(
    ("num_heads", "head_dim"), [(20, 16), (3, 20), (20, 32), (40, 64), (4, 128)]
)
def test_attention(
    num_heads: int, head_dim: int, positions: str, dtype: torch.dtype, fused: ModuleType
) -> None:
    torch.manual_seed(head_dim)
    lengths = make_ragged_lengths(seed=head_dim)
    qkv_T3HK = torch.randn(sum(lengths), 3, num_heads, head_dim, dtype=dtype, device=CUDA)
    angles = make_angles(max(lengths), head_dim // 2) if positions == "rotary" else None
    slopes_H = torch.rand(num_heads, device=CUDA) if positions == "alibi" else None
    found_THK = fused.attend(
        qkv_T3HK, make_offsets(lengths), max(lengths), angles=angles, slopes_H=slopes_H
    )
    wanted_THK = attend_in_float64(qkv_T3HK, lengths, angles, slopes_H)
    assert found_THK.dtype == dtype
    assert deviation(found_THK, wanted_THK) < BOUNDS[dtype]


@pytest.mark.gpu
def test_attention_of_queries_keys_and_values_that_lie_apart(fused: ModuleType) -> None:
    lengths = [5, 70]
    qkv_3THK = torch.randn(3, sum(lengths), 2, 32, dtype=torch.float16, device=CUDA)
    qkv_T3HK = qkv_3THK.transpose(0, 1)
    found_THK = fused.attend(qkv_T3HK, make_offsets(lengths), max(lengths))
    wanted_THK = attend_in_float64(qkv_T3HK, lengths, None, None)
    assert deviation(found_THK, wanted_THK) < BOUNDS[torch.float16]


@pytest.mark.gpu
def test_attention_reads_nothing_of_a_neighbour(fused: ModuleType) -> None:
    lengths = [30, 100, 30]
    qkv_T3HK = torch.randn(sum(lengths), 3, 2, 64, dtype=torch.bfloat16, device=CUDA)
    sound_THK = fused.attend(qkv_T3HK, make_offsets(lengths), max(lengths))
    qkv_T3HK[30:130] = torch.nan
    found_THK = fused.attend(qkv_T3HK, make_offsets(lengths), max(lengths))
    assert found_THK[30:130].isnan().all()
    assert torch.equal(found_THK[:30], sound_THK[:30])
    assert torch.equal(found_THK[130:], sound_THK[130:])


@pytest.mark.gpu
def test_attention_of_a_sequence_with_more_numbers_than_an_int32_counts(fused: ModuleType) -> None:
    length, num_heads, head_dim = 90_000, 64, 128
    assert length * 3 * num_heads * head_dim > 1 << 31
    qkv_T3HK = torch.randn(length, 3, num_heads, head_dim, dtype=torch.float16, device=CUDA)
    # Large, so that a few keys decide: means of all values would be alike whatever is read.
    qkv_T3HK[:, :2] *= 2
    found_THK = fused.attend(qkv_T3HK, make_offsets([length]), length)
    query_TK, key_TK, value_TK = qkv_T3HK[:, :, -1].double().unbind(1)
    scores_QT = query_TK[-64:] @ key_TK.T / head_dim**0.5
    wanted_QK = scores_QT.softmax(-1) @ value_TK
    assert deviation(found_THK[-64:, -1], wanted_QK) < BOUNDS[torch.float16]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize("width", [40, 768, 2560, 5120])
def test_residual_and_norm(width: int, dtype: torch.dtype, fused: ModuleType) -> None:
    torch.manual_seed(width)
    hidden_TD, delta_TD = torch.randn(2, 33, width, dtype=dtype, device=CUDA)
    norm = nn.LayerNorm(width, 1e-12, dtype=dtype, device=CUDA).requires_grad_(False)
    norm.weight.normal_(1, 0.1)
    norm.bias.normal_()
    sum_TD, normed_TD = fused.add_norm(hidden_TD, delta_TD, norm)
    wanted_TD = plain.norm_sum(hidden_TD.double(), delta_TD.double(), norm.double())
    norm.to(dtype)
    assert torch.equal(sum_TD, hidden_TD + delta_TD)
    assert deviation(normed_TD, wanted_TD) < BOUNDS[dtype]
    assert torch.equal(fused.norm_sum(hidden_TD, delta_TD, norm), normed_TD)


@pytest.mark.gpu
def test_the_gate_is_as_exact_as_torch_in_float32(fused: ModuleType) -> None:
    x_TF = torch.linspace(-12, 12, 3 * 1500, device=CUDA).view(3, 1500)
    gate_and_one_TF = torch.cat([x_TF, torch.ones_like(x_TF)], 1)
    wanted_TF = functional.gelu(x_TF.double())
    error = (fused.geglu(gate_and_one_TF) - wanted_TF).abs().max()
    assert error <= max(5e-7, (functional.gelu(x_TF) - wanted_TF).abs().max())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_gelu_of_a_linear_layer(dtype: torch.dtype, fused: ModuleType) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 256, dtype=dtype, device=CUDA).requires_grad_(False)
    x_TD = 4 * torch.randn(3, 33, 64, dtype=dtype, device=CUDA)
    found_TF = fused.linear_gelu(linear, x_TD)
    wanted_TF = plain.linear_gelu(linear.double(), x_TD.double())
    assert found_TF.dtype == dtype
    assert deviation(found_TF, wanted_TF) < BOUNDS[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize("width", [40, 3072])
def test_gated_gelu(width: int, dtype: torch.dtype, fused: ModuleType) -> None:
    torch.manual_seed(width)
    gate_and_value_TF = torch.randn(33, 2 * width, dtype=dtype, device=CUDA)
    wanted_TF = plain.geglu(gate_and_value_TF.double())
    assert deviation(fused.geglu(gate_and_value_TF), wanted_TF) < BOUNDS[dtype]


# 8 bits


def dequantize(rows: float8.Rows) -> Tensor:
    return rows.values_XK.double() * rows.scale_X1.double()


def make_uneven_rows(*shape: int, device: torch.device = CPU) -> Tensor:
    """Return numbers whose rows differ a lot in size, the last of them zeros."""
    x = torch.randn(*shape, device=device)
    x *= 10.0 ** torch.linspace(-6, 4, shape[0], device=device)[:, None]
    x[-1] = 0
    return x


def test_each_row_in_8_bits_is_off_by_a_sixteenth_at_most() -> None:
    torch.manual_seed(0)
    x_TK = make_uneven_rows(40, 320)
    rows = plain.quantize(x_TK)
    error_TK = (dequantize(rows) - x_TK).abs()
    smallest_T1 = rows.scale_X1 * 2.0**-10  # half the step of the numbers next to zero
    assert (error_TK <= torch.maximum(x_TK.abs() / 16, smallest_T1) * 1.0001).all()
    assert (dequantize(rows).abs().amax(1) / x_TK.abs().amax(1))[:-1].allclose(
        torch.ones(39, dtype=torch.float64)
    )
    assert (dequantize(rows)[-1] == 0).all()


def test_rows_in_8_bits_with_one_bound() -> None:
    torch.manual_seed(0)
    x_TK = torch.randn(40, 320).clamp(-3, 3) * torch.logspace(-4, 0, 40)[:, None]
    rows = plain.quantize(x_TK, torch.tensor(6.0))
    assert torch.equal(rows.scale_X1, torch.full((40, 1), 6.0 / float8.MAX_VALUE))
    error_TK = (dequantize(rows) - x_TK).abs()
    assert (error_TK <= (x_TK.abs() / 16).clamp(min=6.0 * 2.0**-18)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize(("num_heads", "head_dim"), [(3, 20), (40, 64)])
def test_attention_in_8_bits(
    num_heads: int, head_dim: int, dtype: torch.dtype, fused: ModuleType
) -> None:
    torch.manual_seed(head_dim)
    lengths = make_ragged_lengths(seed=head_dim)
    qkv_T3HK = torch.randn(sum(lengths), 3, num_heads, head_dim, dtype=dtype, device=CUDA)
    angles = make_angles(max(lengths), head_dim // 2)
    bound = 10 * qkv_T3HK[:, 2].abs().max().float()
    rows = fused.attend_quantize(
        qkv_T3HK, make_offsets(lengths), max(lengths), bound, angles=angles
    )
    wanted_TD = attend_in_float64(qkv_T3HK, lengths, angles, None).flatten(1)
    assert torch.equal(rows.scale_X1, plain.quantize(wanted_TD, bound).scale_X1)
    error_TD = (dequantize(rows) - wanted_TD).abs()
    before = BOUNDS[dtype] * float(wanted_TD.abs().max())
    assert (error_TD <= wanted_TD.abs() / 16 + before + float(bound) * 2.0**-18).all()


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)])
def test_linear_layer_in_8_bits(device: torch.device) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(320, 96, dtype=torch.bfloat16, device=device).requires_grad_(False)
    layer = float8.Float8Linear(linear)
    rows = plain.quantize(make_uneven_rows(50, 320, device=device))
    weight_NK = dequantize(float8.Rows(layer.weight, layer.scale_N1))
    wanted_TN = dequantize(rows) @ weight_NK.T + linear.bias.double()
    found_TN = layer(rows)
    assert found_TN.dtype == torch.bfloat16
    off_T = (found_TN - wanted_TN).abs().amax(1) / wanted_TN.abs().amax(1)
    assert off_T.max() < BOUNDS[torch.bfloat16]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize("width", [320, 2560, 10240])
def test_quantizing_as_plain(width: int, dtype: torch.dtype, fused: ModuleType) -> None:
    torch.manual_seed(width)
    x_TK = (make_uneven_rows(40, width, device=CUDA) / 100).to(dtype)
    norm = nn.LayerNorm(width, dtype=dtype, device=CUDA).requires_grad_(False)
    norm.weight.normal_(1, 0.1)
    exact = plain.add_norm(x_TK.double(), x_TK.flip(0).double(), norm.double())[1]
    norm.to(dtype)
    for found, wanted_TK in (
        (fused.quantize(x_TK), x_TK.double()),
        (fused.gelu_quantize(x_TK), functional.gelu(x_TK.double(), approximate="tanh")),
        (fused.add_norm_quantize(x_TK, x_TK.flip(0), norm)[1], exact),
    ):
        wanted = plain.quantize(wanted_TK)
        # Where rounding in float32 tips a number over, it lands on the neighbour of the right one.
        assert torch.allclose(found.scale_X1, wanted.scale_X1, rtol=1e-2)
        error_TK = (dequantize(found) - wanted_TK).abs() / wanted.scale_X1
        assert (error_TK <= (wanted_TK.abs() / wanted.scale_X1 / 15).clamp(min=2e-3)).all()


@pytest.mark.gpu
def test_ragged_batches_compile_each_kernel_once(
    fused: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    compiled: list[object] = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda **found: compiled.append(found)
    )
    num_heads, head_dim = 11, 48  # of no other test, so that the first batch compiles
    width = num_heads * head_dim
    norm = nn.LayerNorm(width, dtype=torch.float16, device=CUDA)
    angles = make_angles(1200, head_dim // 2)
    for lengths in ([16], [1], [64] * 16, [65, 3], make_ragged_lengths(0)):
        qkv_T3HK = torch.randn(sum(lengths), 3, num_heads, head_dim, device=CUDA).half()
        context_THK = fused.attend(qkv_T3HK, make_offsets(lengths), max(lengths), angles=angles)
        normed_TD = fused.norm_sum(qkv_T3HK[:, 0].flatten(1), context_THK.flatten(1), norm)
        fused.geglu(normed_TD)
        assert len(compiled) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
def test_kernels_are_to_be_had_on_a_gpu(dtype: torch.dtype) -> None:
    assert can_fuse(dtype, CUDA)
    assert not can_fuse(torch.float32, CUDA)


@pytest.mark.gpu
def test_a_triton_that_fails_is_done_without(
    fused: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(fused, "geglu", fail)
    assert not can_fuse(torch.bfloat16, CUDA)
    assert "Failed to find C compiler" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_PRECISIONS])
def test_kernels_are_not_to_be_had_on_a_cpu(dtype: torch.dtype) -> None:
    assert not can_fuse(dtype, CPU)


@pytest.fixture(params=[torch.float32, *HALF_PRECISIONS], ids=str)
def packable(request: pytest.FixtureRequest) -> torch.dtype:
    """A precision in which oneDNN multiplies here."""
    dtype: torch.dtype = request.param
    if not onednn.can_pack(dtype, CPU):
        # Float32 it multiplies on all such processors, so there the operators must work.
        is_x86 = platform.machine() == "x86_64" and torch.backends.mkldnn.is_available()
        assert dtype != torch.float32 or not is_x86
        pytest.skip(f"oneDNN does not multiply {dtype} on this processor")
    return dtype


@torch.inference_mode()
def test_packed_layers(packable: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, dtype=packable)
    gated = nn.Linear(48, 160, bias=False, dtype=packable)
    x_XD = torch.randn(3, 17, 48, dtype=packable)
    hidden_XD = torch.randn(3, 17, 80, dtype=packable)
    packed = onednn.PackedLinear(linear.weight, linear.bias)
    found = [
        packed(x_XD),
        onednn.linear_gelu(packed, x_XD),
        onednn.linear_geglu(onednn.PackedGated(gated.weight), x_XD),
        onednn.linear_add(packed, x_XD, hidden_XD)[0],
    ]
    exact_XD = x_XD.double()
    wanted = [
        linear.double()(exact_XD),
        plain.linear_gelu(linear, exact_XD),
        plain.linear_geglu(gated.double(), exact_XD),
        linear(exact_XD) + hidden_XD,
    ]
    for found_XF, wanted_XF in zip(found, wanted, strict=True):
        assert found_XF.dtype == packable
        assert deviation(found_XF, wanted_XF) < BOUNDS[packable]


# Of these, bf16 leaves out the shift for 40 alone.
@pytest.mark.parametrize("length", [37, 40])
@torch.inference_mode()
def test_attention_on_a_cpu(packable: torch.dtype, length: int) -> None:
    torch.manual_seed(0)
    q_BHLK, k_BHLK, v_BHLK = torch.randn(3, 2, 5, length, 16, dtype=packable)
    bias_BHLL = torch.randn(2, 5, length, length, dtype=packable)
    for bias in (None, bias_BHLL):
        found_BHLK = onednn.attend(q_BHLK, k_BHLK, v_BHLK, bias)
        exact = (x.double() for x in (q_BHLK, k_BHLK, v_BHLK))
        wanted_BHLK = functional.scaled_dot_product_attention(
            *exact, attn_mask=None if bias is None else bias.double()
        )
        # The scores, which become exponents, are rounded too.
        assert deviation(found_BHLK, wanted_BHLK) < 4 * BOUNDS[packable]


@pytest.mark.parametrize("shift", [128, -128])
@torch.inference_mode()
def test_attention_on_a_cpu_to_scores_of_any_size(packable: torch.dtype, shift: int) -> None:
    torch.manual_seed(0)
    # Whole numbers, so that all scores are exact. Their exponentials leave the range of float32.
    q_BHLK, k_BHLK = torch.randint(-1, 2, (2, 2, 5, 40, 16)).to(packable)
    q_BHLK, v_BHLK = 4 * q_BHLK, torch.randn(2, 5, 40, 16, dtype=packable)
    bias_BHLL = torch.full((2, 5, 40, 40), float(shift), dtype=packable)
    found_BHLK = onednn.attend(q_BHLK, k_BHLK, v_BHLK, bias_BHLL)
    exact = (x.double() for x in (q_BHLK, k_BHLK, v_BHLK))
    wanted_BHLK = functional.scaled_dot_product_attention(*exact)
    assert deviation(found_BHLK, wanted_BHLK) < BOUNDS[packable]


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=str)
def test_a_norm_under_autocast_rounds_once(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.LayerNorm(32, dtype=torch.bfloat16)
    nn.init.normal_(norm.weight, generator=generator)
    norm.to(device)
    x_2TD = torch.randn(2, 9, 32, generator=generator).bfloat16().to(device)
    hidden_TD, delta_TD = x_2TD.unbind()
    wanted_TD = norm(hidden_TD + delta_TD)
    with torch.autocast(device.type, torch.bfloat16):
        found_TD = plain.norm_sum(hidden_TD, delta_TD, norm)
    assert found_TD.dtype == torch.bfloat16
    assert torch.equal(found_TD, wanted_TD)


def test_where_nothing_is_packed() -> None:
    assert not onednn.can_pack(torch.float32, CUDA)
    assert not onednn.can_pack(torch.float64, CPU)  # which oneDNN does not know


def test_an_operator_that_computes_something_else_is_not_used(
    packable: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onednn, "linear_gelu", lambda linear, x_XD: linear(x_XD).relu())
    assert not onednn.can_pack(packable, CPU)
    assert "wrongly here" in caplog.text


@pytest.mark.parametrize(("num_sequences", "num_pieces"), [(7, 1), (8, 2), (23, 2)])
def test_halves_of_a_batch_give_what_the_whole_does(num_sequences: int, num_pieces: int) -> None:
    lengths_B = torch.arange(num_sequences, 0, -1)
    batch = TokenBatch(
        token_ids_T=torch.arange(int(lengths_B.sum())),
        lengths_B=lengths_B,
        max_length=num_sequences,
        rows=np.arange(num_sequences) * 7,
    )
    pieces: list[tuple[int, int]] = []

    def embed(piece: TokenBatch) -> Tensor:
        assert torch.is_inference_mode_enabled()
        assert piece.max_length == piece.lengths_B.max()
        pieces.append((len(piece.rows), torch.get_num_threads()))
        means = [
            ids_L.double().mean() for ids_L in piece.token_ids_T.split(piece.lengths_B.tolist())
        ]
        return torch.stack([torch.stack(means), torch.from_numpy(piece.rows).double()], 1)

    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with torch.inference_mode():
            found_BE = embed_halves(embed, batch)
            assert len(pieces) == num_pieces
            assert {threads for _, threads in pieces} == {4 // num_pieces}
            assert sum(num for num, _ in pieces) == num_sequences
            assert torch.equal(found_BE, embed(batch))
            assert torch.get_num_threads() == 4
            with ThreadPoolExecutor(1) as pool:  # nor is what later threads begin with changed
                assert pool.submit(torch.get_num_threads).result() == 4
            # As cut by one thread, which rounds as two do.
            torch.set_num_threads(1)
            sizes = [num for num, _ in pieces[:num_pieces]]
            pieces.clear()
            assert torch.equal(embed_halves(embed, batch), found_BE)
            assert sorted(num for num, _ in pieces) == sorted(sizes)
    finally:
        torch.set_num_threads(num_threads)
