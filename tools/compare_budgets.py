"""Compares the default token budget of a batch with smaller and larger budgets.

    python -m tools.compare_budgets esm2 --precision bf16 fp8
    python -m tools.compare_budgets dnabert-s --weights virnucpro/data/mini/dnabert_s --device cpu

Every round measures each budget once. The fastest round counts, because other programs on the
machine only slow a measurement down.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from virnucpro.config import ATTENTIONS, PRECISIONS, ComputeConfig
from virnucpro.embedding.budgets import MOST_BATCH_TOKENS
from virnucpro.embedding.measuring import fill_batch, make_sequences, measure_encoder
from virnucpro.runtime.devices import (
    choose_precision,
    device_name,
    is_out_of_memory,
    make_accelerator,
)
from virnucpro.workflows.benchmark import Subject, open_subjects

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
"""The measured budgets, relative to the default budget."""


def compare(
    subject: Subject, device: torch.device, precision: str, args: argparse.Namespace
) -> None:
    """Print a line for each budget of one model in one precision."""
    encoder = subject.load_encoder(device, precision=precision, attention=args.attention)
    collator = subject.backend.load_collator(subject.weights)
    default = MOST_BATCH_TOKENS[device.type]
    batches = {
        budget: fill_batch(
            subject.backend,
            collator,
            make_sequences(subject.backend.info.alphabet, args.length),
            budget,
        )
        for budget in (int(factor * default) for factor in FACTORS)
    }
    speeds: dict[int, list[float]] = {budget: [] for budget in batches}
    for _ in range(args.rounds):
        for budget, batch in batches.items():
            try:
                speed = measure_encoder(encoder, batch, device, args.seconds)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                continue
            speeds[budget].append(speed.tokens_per_s)
    print(f"\n{subject.name}, {precision}, {args.length} bp, on {device_name(device)}")
    print(f"{'tokens a batch':>14} {'tokens/s':>11} {'gain':>7}")
    for budget, found in speeds.items():
        if not found:
            print(f"{budget:>14} out of memory")
            continue
        gain = max(found) / max(speeds[default]) - 1
        note = "  (default)" if budget == default else ""
        print(f"{budget:>14} {max(found):>11,.0f} {gain:>+7.1%}{note}", flush=True)


@torch.inference_mode()
def main() -> None:
    """Print one table for each model and precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backend", help="a name that `virnucpro backends` lists")
    parser.add_argument("--weights", help="default: random weights, as in `virnucpro benchmark`")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["auto"])
    parser.add_argument("--attention", choices=ATTENTIONS, default="auto")
    parser.add_argument("--length", type=int, default=500, metavar="BP", help="of the chunks")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    args = parser.parse_args()
    accelerator = make_accelerator(ComputeConfig(device=args.device))
    device = accelerator.device
    with tempfile.TemporaryDirectory() as scratch:
        on_gpu = device.type == "cuda"
        for subject in open_subjects(args.backend, args.weights, Path(scratch), on_gpu=on_gpu):
            for precision in args.precision:
                compare(subject, device, choose_precision(precision, accelerator), args)


if __name__ == "__main__":
    main()
