"""Compares the default token budget of a batch with smaller and larger budgets.

    python -m tools.compare_budgets esm2 --precision bf16 fp8
    python -m tools.compare_budgets dnabert-s --weights virnucpro/data/mini/dnabert_s --device cpu

Every round measures each budget once. The fastest round counts, because other programs on the
machine only slow a measurement down. On a busy machine, set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from virnucpro.config import ComputeConfig
from virnucpro.config.shared import ATTENTIONS, PRECISIONS
from virnucpro.embedding.budgets import default_batch_tokens
from virnucpro.embedding.measuring import fill_batch, make_sequences, measure_encoder
from virnucpro.embedding.models import Model
from virnucpro.runtime.devices import device_name, is_out_of_memory
from virnucpro.runtime.run import Run, open_run
from virnucpro.workflows.benchmark import open_models

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
"""The measured budgets, relative to the default budget."""


def compare(run: Run, label: str, model: Model, args: argparse.Namespace) -> None:
    """Print a line for each budget of one model in the precision of the run."""
    encoder = model.load_encoder(run.device, run.precision, args.attention)
    default = default_batch_tokens(run.device.type, run.precision)
    batches = {}
    for factor in FACTORS:
        batch_tokens = int(factor * default)
        sequences = make_sequences(model.alphabet, args.length)
        batches[batch_tokens] = fill_batch(model, sequences, batch_tokens)
    speeds = dict.fromkeys(batches, 0.0)
    for _ in range(args.rounds):
        for batch_tokens, batch in batches.items():
            try:
                speed = measure_encoder(encoder, batch, run.device, args.seconds)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                continue
            speeds[batch_tokens] = max(speeds[batch_tokens], speed.tokens_per_s)
    precision = model.compute_precision(run.precision)
    print(f"\n{label}, {precision}, {args.length} bp, on {device_name(run.device)}")
    print(f"{'tokens a batch':>14} {'tokens/s':>11} {'gain':>7}")
    for batch_tokens, tokens_per_s in speeds.items():
        gain = tokens_per_s / speeds[default] - 1
        note = "  (default)" if batch_tokens == default else ""
        print(f"{batch_tokens:>14} {tokens_per_s:>11,.0f} {gain:>+7.1%}{note}", flush=True)


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
    with tempfile.TemporaryDirectory() as scratch:
        with open_run(ComputeConfig(device=args.device)) as run:
            on_gpu = run.device.type == "cuda"
            models = list(open_models(args.backend, args.weights, Path(scratch), on_gpu=on_gpu))
        for precision in args.precision:
            with open_run(ComputeConfig(device=args.device, precision=precision)) as run:
                for label, model in models:
                    compare(run, label, model, args)


if __name__ == "__main__":
    main()
