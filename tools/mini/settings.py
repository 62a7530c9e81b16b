"""The settings of a training: its command line, and the file that keeps them."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path

from tools.mini.model import Sizes
from tools.mini.teachers import read_model, read_protein_sizes
from virnucpro.config import FrameRule

SETTINGS_NAME = "settings.json"
MODEL_NAME = "model"

CHUNK_LENGTHS_BP = (1000, 500, 1000, 300, 1000, 700, 1000, 200, 500, 300, 1500, 150)
"""The lengths of chunks, in the order in which steps take them."""

COUNTED_BP = 500
"""Of so many bases is a chunk that `--num-chunks` counts."""
_RULE = FrameRule("stretches")


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Return the command line's settings; `sizes` are those of the model."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "genomes", type=Path, nargs="+", help="the .npz files of tools.mini.pack_genomes"
    )
    parser.add_argument("output", type=Path, help="the directory to write, or to go on in")
    parser.add_argument("--minutes", type=float, default=60.0, help="the whole training's")
    parser.add_argument(
        "--leg-minutes", type=float, default=1e9, help="stop sooner, to go on later"
    )
    parser.add_argument("--evaluate-seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--chunk-lengths", type=int, nargs="+", default=CHUNK_LENGTHS_BP, metavar="BP"
    )
    parser.add_argument("--lengths-per-step", type=int, default=2)
    parser.add_argument(
        "--num-chunks",
        type=int,
        default=1024,
        help=f"of {COUNTED_BP} bp in a step, or as many bases",
    )
    parser.add_argument("--num-stretches", type=int, default=_RULE.max_stretches)
    parser.add_argument("--min-codons", type=int, default=_RULE.min_codons, help="of a stretch")
    parser.add_argument("--num-valid", type=int, default=8192, help="valid chunks of each length")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--encoder-learning-rate", type=float, help="of the protein encoder")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--mask-rate", type=float, default=0.15)
    parser.add_argument("--guess-weight", type=float, default=0.1)
    parser.add_argument("--max-mutation-rate", type=float, default=0.7, help="of codons")
    parser.add_argument("--teachers", type=Path, nargs="*", default=[], help="trained models")
    parser.add_argument("--teacher-weight", type=float, default=0.7, help="the truth has the rest")
    parser.add_argument(
        "--embedding-weight", type=float, default=0.5, help="of the teachers' protein embeddings"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--protein-init", metavar="LOCATION", help="published weights of ESM-2")
    start.add_argument(
        "--init",
        type=Path,
        metavar="MODEL",
        help="begin with a trained model; only --protein-layers may differ from its sizes",
    )
    parser.add_argument("--group-share", type=float, default=1.0, help="learn from fewer groups")
    parser.add_argument("--compile", action="store_true", help="on a GPU: with torch.compile")
    for field in fields(Sizes):
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(
                name, type=int, help=f"a size of the model (default {field.default})"
            )
    args = parser.parse_args()
    begun = Sizes() if args.init is None else read_model(args.init)[0].sizes
    given = {field.name: getattr(args, field.name, None) for field in fields(Sizes)}
    sizes = {name: value for name, value in given.items() if value is not None}
    if args.protein_init is not None:
        sizes |= read_protein_sizes(args.protein_init)
    args.sizes = replace(begun, **sizes)
    if args.init is not None and args.sizes != replace(
        begun, protein_layers=args.sizes.protein_layers
    ):
        parser.error(f"{args.init} has other sizes; of these only --protein-layers may differ")
    return args


def write_settings(path: Path, args: argparse.Namespace, num_processes: int) -> None:
    """Write the settings as JSON: numbers, and how many processes and teachers there are."""
    numbers = {name: value for name, value in vars(args).items() if isinstance(value, int | float)}
    settings = {
        **numbers,
        **vars(args.sizes),
        "chunk_lengths": list(args.chunk_lengths),
        "num_processes": num_processes,
        "num_teachers": len(args.teachers),
        "has_protein_init": args.protein_init is not None,
        "has_init": args.init is not None,
    }
    path.write_text(json.dumps(settings, indent=2) + "\n")
