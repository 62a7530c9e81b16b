"""Times the ESM-2 network with random weights and compares its precisions with float32.

Needs torch and NumPy, no files; the weights are made on the device itself:

    PYTHONPATH=.:backends python tools/benchmark_esm2.py --preset 3B --device cuda

Where fair-esm is installed and the device is a CPU, its `ESM2` is timed on the same proteins.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import random
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from virnucpro_esm2.model import Esm2, Esm2Config, make_empty_model
from virnucpro_esm2.tokens import Esm2Collator

from tools.make_esm2_weights import SIZES, make_config, make_random_model
from virnucpro.backend.interface import Attention, TokenBatch
from virnucpro.embedding.compiling import compile_layers
from virnucpro.errors import UsageError
from virnucpro.kernels import float8, onednn
from virnucpro.runtime.devices import keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES_AND_FP8 = {**DTYPES, "fp8": float8.DTYPE}
HEADINGS = f"""
Cosine and deviation (relative to an embedding's largest entry) are against fp32 eager.
{"":<14} {"tokens/s":>11} {"proteins/s":>11} {"ms/batch":>9} {"TFLOP/s":>9} \
{"cos worst":>11} {"cos median":>11} {"dev. worst":>10} {"median":>10}"""
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def make_proteins(lengths: list[int]) -> list[str]:
    """Return random proteins of these lengths."""
    source = random.Random(0)
    return ["".join(source.choices(AMINO_ACIDS, k=length)) for length in lengths]


def make_batch(proteins: list[str], device: torch.device) -> TokenBatch:
    """Return the proteins as one batch on `device`."""
    batch = Esm2Collator()(np.arange(len(proteins)), proteins)
    return batch._replace(
        token_ids_T=batch.token_ids_T.to(device), lengths_B=batch.lengths_B.to(device)
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_seconds(call: Callable[[], object], device: torch.device, num_steps: int) -> float:
    """Return the mean seconds of a call, after one warming up."""
    call()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(num_steps):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / num_steps


def count_flop(config: Esm2Config, num_tokens: int, length: int) -> int:
    """Return the floating-point operations of the matrix products of one batch."""
    dim = config.embed_dim
    linear = 2 * (4 * dim * dim + 2 * dim * config.ffn_dim)
    attention = 4 * length * dim
    return num_tokens * config.num_layers * (linear + attention)


def format_speed(seconds: float, config: Esm2Config, batch_size: int, length: int) -> str:
    """Return the columns of one batch's speed; `length` counts BOS and EOS."""
    num_tokens = batch_size * length
    tera_flop = count_flop(config, num_tokens, length) / 1e12
    return (
        f"{num_tokens / seconds:>11,.0f} {batch_size / seconds:>11,.1f} "
        f"{seconds * 1e3:>9.1f} {tera_flop / seconds:>9.2f}"
    )


def format_numerics(found_BE: torch.Tensor, wanted_BE: torch.Tensor) -> str:
    """Return the columns of how far embeddings are from those wanted."""
    cosine_B = cosine_similarity(found_BE.double(), wanted_BE.double())
    deviation_B = (found_BE - wanted_BE).abs().amax(1) / wanted_BE.abs().amax(1)
    return (
        f"{cosine_B.min():>11.7f} {cosine_B.median():>11.7f} "
        f"{deviation_B.max():>10.2e} {deviation_B.median():>10.2e}"
    )


def copy_model(source: Esm2, dtype: torch.dtype, attention: Attention) -> Esm2:
    """Return the same model in another precision and with another attention."""
    device = source.final_norm.weight.device
    model = make_empty_model(source.config, dtype=dtype, device=device, attention=attention)
    for target, value in zip(model.parameters(), source.parameters(), strict=True):
        target.copy_(value)
    if dtype == float8.DTYPE:
        model.quantize()
    else:
        onednn.pack_where_it_pays(model, attention, dtype, device)
    return model


def measure_fair_esm(config: Esm2Config, proteins: list[str], num_steps: int) -> float:
    """Return the seconds that fair-esm's float32 model takes for the proteins as one batch."""
    from esm.model.esm2 import ESM2

    model = ESM2(config.num_layers, config.embed_dim, config.num_heads).eval()
    _, _, tokens = model.alphabet.get_batch_converter()([("", protein) for protein in proteins])
    last = config.num_layers
    return measure_seconds(
        lambda: model(tokens, repr_layers=[last]), torch.device("cpu"), num_steps
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=SIZES, help="a published size, instead of the next 3")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dim", type=int, default=320)
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", choices=DTYPES_AND_FP8, default=list(DTYPES))
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=("eager", "sdpa", "flash", "auto"),
        default=["eager", "sdpa", "auto"],
    )
    parser.add_argument("--token-budget", type=int, help="tokens in a batch (32768; CPU: 4096)")
    parser.add_argument("--length", type=int, default=160, help="residues of the timed proteins")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="time the layers compiled, too")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    """Print one line of speed and numerics for each precision and attention."""
    args = parse_arguments()
    device = torch.device(args.device)
    config = make_config(*SIZES.get(args.preset, (args.layers, args.dim, args.heads)))
    length = args.length + 2
    budget = args.token_budget or (32768 if device.type == "cuda" else 4096)
    proteins = make_proteins([args.length] * max(1, budget // length))
    speed_batch = make_batch(proteins, device)
    mixed_batch = make_batch(make_proteins([1, 2, 7, *range(20, 420, 10), 1024]), device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {hardware}, {config}")

    reference = make_random_model(config, device=device, attention="eager")
    wanted_BE = reference(mixed_batch)
    print(HEADINGS)
    if device.type == "cpu":
        if importlib.util.find_spec("esm"):
            seconds = measure_fair_esm(config, proteins, args.steps)
            print(f"{'fp32 fair-esm':<14} {format_speed(seconds, config, len(proteins), length)}")
        keep_freed_memory()  # as our runs do, but not programs that call fair-esm
    for precision, attention in itertools.product(args.precision, args.attention):
        name = f"{precision} {attention}"
        try:
            model = copy_model(reference, DTYPES_AND_FP8[precision], attention)
        except UsageError as error:
            print(f"{name:<14} {error}")
            continue
        for setting in ("off", "on") if args.compile else ("off",):
            start = time.perf_counter()
            if compile_layers(model, setting, num_tokens=0, device=device):
                model(speed_batch)
                synchronize(device)
                print(f"{'compiled in':<14} {time.perf_counter() - start:>11.1f} s")
            elif setting == "on":
                continue
            seconds = measure_seconds(functools.partial(model, speed_batch), device, args.steps)
            speed = format_speed(seconds, config, len(proteins), length)
            numerics = format_numerics(model(mixed_batch), wanted_BE)
            print(f"{name:<14} {speed} {numerics}", flush=True)


if __name__ == "__main__":
    main()
