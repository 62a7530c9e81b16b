"""Times the DNABERT-S network with random weights and compares its precisions with float32.

Needs torch and NumPy, no files:

    PYTHONPATH=.:backends python tools/benchmark_dnabert_s.py
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from virnucpro_dnabert_s.attention import AttentionKernel
from virnucpro_dnabert_s.model import DnabertS, ModelConfig

from virnucpro.backend.interface import TokenBatch
from virnucpro.embedding.compiling import compile_layers
from virnucpro.kernels import can_fuse, onednn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_ORDINARY_TOKEN = 9


def make_model(config: ModelConfig, device: torch.device, seed: int) -> DnabertS:
    """Return a float32 model on `device`, its random weights scaled to keep activations O(1)."""
    with torch.device("meta"):
        model = DnabertS(config)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.dim() == 2:
            parameter /= parameter.shape[1] ** 0.5
        else:
            parameter.mul_(0.1).add_(float(name.endswith("norm.weight")))
    return model


def make_batch(lengths: np.ndarray, vocab_size: int, rng: np.random.Generator) -> TokenBatch:
    """Return random tokens for sequences of these lengths, on the CPU."""
    token_ids = rng.integers(FIRST_ORDINARY_TOKEN, vocab_size, lengths.sum())
    return TokenBatch(
        token_ids_T=torch.from_numpy(token_ids),
        lengths_B=torch.from_numpy(lengths),
        max_length=int(lengths.max()),
        rows=np.arange(len(lengths)),
    )


def to_device(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """Return the batch with its tensors on `device`."""
    return batch._replace(
        token_ids_T=batch.token_ids_T.to(device), lengths_B=batch.lengths_B.to(device)
    )


def make_frame_batches(
    num_batches: int, token_budget: int, vocab_size: int, rng: np.random.Generator
) -> list[TokenBatch]:
    """Return length-sorted batches like those of the open frames of 500-bp chunks."""
    num_frames = num_batches * token_budget // 109
    lengths = np.sort(rng.normal(109, 3, num_frames).round().astype(np.int64))
    return [make_batch(part, vocab_size, rng) for part in np.array_split(lengths, num_batches)]


def measure_speed(model: DnabertS, batches: list[TokenBatch], device: torch.device) -> float:
    """Return the seconds for all batches, after one warming up."""
    model(batches[-1])
    _synchronize(device)
    start = time.perf_counter()
    for batch in batches:
        model(batch)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def variants(
    reference: DnabertS, precisions: list[str], device: torch.device
) -> Iterator[tuple[str, DnabertS]]:
    """Yield the model in these precisions and with every attention kernel that `device` has."""
    kernels: list[AttentionKernel] = ["eager", "sdpa"]
    for dtype in map(DTYPES.__getitem__, precisions):
        model = copy.deepcopy(reference).to(dtype)
        has_flash = importlib.util.find_spec("flash_attn") is not None
        half_on_gpu = device.type == "cuda" and dtype != torch.float32
        flash: list[AttentionKernel] = ["flash"] if has_flash and half_on_gpu else []
        fused: list[AttentionKernel] = ["fused"] if can_fuse(dtype, device) else []
        for kernel in [*kernels, *flash, *fused]:
            model.attention = kernel
            yield f"{str(dtype).removeprefix('torch.')} {kernel}", model
        if onednn.can_pack(dtype, device):
            model.pack()
            yield f"{str(dtype).removeprefix('torch.')} onednn", model


def describe_deviation(embeddings: torch.Tensor, reference: torch.Tensor) -> str:
    """Return cosines and the largest deviation, relative to the reference's largest entry."""
    cosines = cosine_similarity(embeddings.double(), reference.double(), dim=1)
    deviation = (embeddings - reference).abs().max() / reference.abs().max()
    return f"{cosines.min():.7f}  {cosines.median():.7f}  {deviation:.2e}"


def main() -> None:
    """Print one line for each precision and attention kernel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--token-budget", type=int, default=32768)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--longest", type=int, default=1000, help="tokens, in the comparison")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile torch's own attentions")
    args = parser.parse_args()
    device = torch.device(args.device)
    config = ModelConfig(4096, 2, args.width, args.layers, args.heads, 4 * args.width, 1e-12)
    rng = np.random.default_rng(args.seed)
    reference = make_model(config, device, args.seed)

    batches = [
        to_device(batch, device)
        for batch in make_frame_batches(args.batches, args.token_budget, config.vocab_size, rng)
    ]
    num_frames = sum(len(batch.rows) for batch in batches)
    num_tokens = sum(len(batch.token_ids_T) for batch in batches)
    lengths = np.unique(np.geomspace(2, args.longest, 64).astype(np.int64))
    mixed = to_device(make_batch(lengths, config.vocab_size, rng), device)

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {config}")
    print(f"{num_frames} frames, {num_tokens} tokens, {args.token_budget} tokens per batch")
    print(f"against float32 eager: {len(lengths)} sequences of 2 to {args.longest} tokens")
    print(f"{'':16}  tokens/s  frames/s  cosine min  median  largest deviation")
    with torch.inference_mode():
        reference.attention = "eager"
        expected = reference(mixed)
        for label, variant in variants(reference, args.precision, device):
            model = variant
            start = time.perf_counter()
            if args.compile and not variant.has_own_kernels:
                model = copy.deepcopy(variant)  # variants share their layers
                compile_layers(model, "on", num_tokens=0, device=device)
                model(batches[0])
                _synchronize(device)
                print(f"compiled in {time.perf_counter() - start:.1f} s")
            seconds = measure_speed(model, batches, device)
            deviation = describe_deviation(model(mixed), expected)
            speed = f"{num_tokens / seconds:10.0f}  {num_frames / seconds:8.0f}"
            print(f"{label:16}{speed}  {deviation}", flush=True)


if __name__ == "__main__":
    main()
