"""Trains the small model, or a model of your own, on packed genomes.

    accelerate launch -m tools.mini.train genomes.npz run --minutes 60

It writes three things. `run/model` is the model that was best on the valid split so far, in the
form that `virnucpro predict` takes. `run/log.jsonl` has the figures. From `run/state` the same
command continues. The learning rate follows the clock and reaches 0 after `--minutes`, over all
legs. Some tokens are masked, and the encoders learn to guess them; with `--pretrain-share` they
begin with that alone. `--teachers` takes the directories of earlier runs, and the model also learns
what these teachers say (Hinton et al. 2015, arXiv:1503.02531).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tools.mini.export import export_model
from tools.mini.figures import chunk_logits
from tools.mini.frames import DNA_MASK, DNA_SPECIAL, PROTEIN_MASK
from tools.mini.genomes import keep_groups, read_genomes
from tools.mini.model import MiniModel, Sizes
from tools.mini.sampling import Batch, Sampler
from tools.mini.validation import ValidSet, make_valid_set, measure_valid_set

CHUNK_LENGTHS_BP = (300, 500)
SHORT_LENGTHS_BP = (90, 150, 220)
"""Of the chunks of records that are shorter than a chunk; each step has one of them."""

SHORT_SHARE = 0.125
WARM_UP_SHARE = 0.02
EMA_DECAY = 0.998
STEPS_PER_CLOCK = 20
SETTINGS_NAME = "settings.json"
WEIGHTS_NAME = "weights.safetensors"
_FIRST_RESIDUE = 4


@dataclass
class Clock:
    """How far the training has come, over all legs."""

    seconds: float = 0.0
    step: int = 0
    best: float = 0.0
    evaluated: float = 0.0

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        vars(self).update(state)


class Training:
    """The state of one training, and its loop."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        has_gpu = torch.cuda.is_available()
        # Said even where there is no GPU: Accelerate otherwise makes each process a run of its own.
        self.accelerator = Accelerator(cpu=not has_gpu, mixed_precision="bf16" if has_gpu else "no")
        set_seed(args.seed)
        device = self.accelerator.device
        model = MiniModel(args.sizes, args.dropout).to(device)
        self.teachers = [read_teacher(run, args.sizes.word_bp).to(device) for run in args.teachers]
        self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        decayed = [value for value in model.parameters() if value.ndim > 1]
        others = [value for value in model.parameters() if value.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": args.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=args.learning_rate,
            betas=(0.9, 0.98),
        )
        if args.compile:
            model.compile_layers()
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.clock = Clock()
        self.accelerator.register_for_checkpointing(self.ema, self.clock)
        self.state_path = args.output / "state"
        if self.state_path.is_dir():
            self.accelerator.load_state(str(self.state_path))
        self.generator = torch.Generator(device)
        self.generator.manual_seed(
            args.seed + 1000 * self.clock.step + self.accelerator.process_index
        )
        genomes = keep_groups(read_genomes(args.genomes, "train"), args.group_share).to(device)
        self.samplers = {
            length_bp: Sampler(
                genomes, length_bp, args.sizes.word_bp, self.generator, args.max_mutation_rate
            )
            for length_bp in (*SHORT_LENGTHS_BP, *CHUNK_LENGTHS_BP)
        }
        self.valid_sets: dict[int, ValidSet] = {}
        if self.accelerator.is_main_process:
            valid = read_genomes(args.genomes, "valid").to(device)
            self.valid_sets = {
                length_bp: make_valid_set(valid, length_bp, args.sizes.word_bp, args.num_valid)
                for length_bp in CHUNK_LENGTHS_BP
            }

    def run(self) -> None:
        """Train until the leg or the whole time is over, and keep the state."""
        args, clock = self.args, self.clock
        leg_start, start_seconds = time.monotonic(), clock.seconds
        losses: dict[str, Tensor] = {}
        while clock.seconds < min(start_seconds + 60 * args.leg_minutes, 60 * args.minutes):
            losses = self.step()
            if clock.step % STEPS_PER_CLOCK == 0:
                # Every process goes by the first one's clock: their learning rates must be equal.
                elapsed = start_seconds + time.monotonic() - leg_start
                clock.seconds = broadcast(
                    torch.tensor(elapsed, device=self.accelerator.device)
                ).item()
                if clock.seconds - clock.evaluated > args.evaluate_seconds:
                    self.evaluate(losses)
        if clock.evaluated != clock.seconds:
            self.evaluate(losses)
        self.accelerator.save_state(str(self.state_path))

    def step(self) -> dict[str, Tensor]:
        """Learn from one batch of each length, and return the losses."""
        args, clock = self.args, self.clock
        progress = clock.seconds / (60 * args.minutes)
        warm = min(1.0, progress / WARM_UP_SHARE + 0.001)
        rate = args.learning_rate * warm * (1 + math.cos(math.pi * min(progress, 1))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        short_bp = SHORT_LENGTHS_BP[clock.step % len(SHORT_LENGTHS_BP)]
        sizes = dict.fromkeys(CHUNK_LENGTHS_BP, args.num_frames)
        sizes[short_bp] = max(round(args.num_frames * SHORT_SHARE), 2)
        batches = [
            self.samplers[length_bp].draw_batch(num_frames, has_errors=True)
            for length_bp, num_frames in sizes.items()
        ]
        tokens = [(batch.frames.dna_FT, batch.frames.protein_FT) for batch in batches]
        masked = [self._mask(*pair) for pair in tokens]
        logits_F2, guess = self.model(tokens, masked)
        taught_F2 = self._ask_teachers(tokens) if self.teachers else None
        frame_loss, chunk_loss = call_losses(
            logits_F2.float(), batches, taught_F2, args.teacher_weight
        )
        calls = 0.0 if progress < args.pretrain_share else 0.5
        loss = calls * (frame_loss + chunk_loss) + args.guess_weight * guess
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        clock.step += 1
        return {"frame": frame_loss, "chunk": chunk_loss, "guess": guess}

    @torch.no_grad()
    def _ask_teachers(self, tokens: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the mean of the teachers' log-odds that each frame is viral, as logits (F, 2)."""
        with self.accelerator.autocast():
            logits_F2 = [teacher(tokens, tokens)[0].float() for teacher in self.teachers]
        return torch.stack([logits.log_softmax(1) for logits in logits_F2]).mean(0)

    def _mask(self, dna_FT: Tensor, protein_FT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens, in half of the frames some of them masked."""
        is_masked_F1 = self._uniform(len(dna_FT), 1) < 0.5
        dna_hit_FT = is_masked_F1 & (self._uniform(*dna_FT.shape) < self.args.mask_rate)
        protein_hit_FT = is_masked_F1 & (self._uniform(*protein_FT.shape) < self.args.mask_rate)
        return (
            dna_FT.masked_fill(dna_hit_FT & (dna_FT >= len(DNA_SPECIAL)), DNA_MASK),
            protein_FT.masked_fill(protein_hit_FT & (protein_FT >= _FIRST_RESIDUE), PROTEIN_MASK),
        )

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.accelerator.device, generator=self.generator)

    def evaluate(self, losses: dict[str, Tensor]) -> None:
        """Log the figures on the valid split, and keep the model if it is the best yet."""
        clock = self.clock
        clock.evaluated = clock.seconds
        if not self.accelerator.is_main_process:
            return
        model = self.ema.module.eval()
        found, calibrations = {}, {}
        for length_bp, valid_set in self.valid_sets.items():
            with torch.no_grad(), self.accelerator.autocast():
                found[length_bp], calibrations[length_bp] = measure_valid_set(model, valid_set)
        mean = sum(figures["all"] for figures in found.values()) / len(found)
        is_best = mean > clock.best
        if is_best:
            clock.best = mean
            export_model(self.args.output / "model", model, calibrations)
            save_file(model.state_dict(), self.args.output / WEIGHTS_NAME)
        document: dict[str, Any] = {
            "seconds": round(clock.seconds, 1),
            "step": clock.step,
            "best": is_best,
            "valid": found,
            "loss": {name: round(value.item(), 4) for name, value in losses.items()},
        }
        line = json.dumps(document)
        print(line, flush=True)
        with (self.args.output / "log.jsonl").open("a") as file:
            file.write(line + "\n")


def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
    """Move the running averages towards the weights: far at first, less and less, at last a little.

    With a constant decay the first of a short training would outweigh all that follow.
    """
    seen = int(num_averaged)
    get_ema_multi_avg_fn(min(EMA_DECAY, (1 + seen) / (10 + seen)))(averaged, current, num_averaged)


def call_losses(
    logits_F2: Tensor, batches: list[Batch], taught_F2: Tensor | None = None, weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of the frames' scores and that of the chunks', which make the calls.

    Args:
        logits_F2: Of the frames of all batches, one after the other.
        batches: Their truth.
        taught_F2: What teachers say instead, logits too.
        weight: How much that counts; the truth counts the rest.
    """
    frame_labels, chunks, chunk_labels = [], [], []
    num_chunks = 0
    for batch in batches:
        chunk_labels.append(batch.is_viral_C)
        frame_labels.append(batch.is_viral_C[batch.frames.chunk_F])
        chunks.append(batch.frames.chunk_F + num_chunks)
        num_chunks += len(batch.is_viral_C)
    chunk_F = torch.cat(chunks)
    wanted_F2 = functional.one_hot(torch.cat(frame_labels).long(), 2).to(logits_F2.dtype)
    wanted_C = torch.cat(chunk_labels).to(logits_F2.dtype)
    if taught_F2 is not None:
        wanted_F2 = torch.lerp(wanted_F2, taught_F2.softmax(1), weight)
        taught_C = chunk_logits(taught_F2, chunk_F, num_chunks).sigmoid()
        wanted_C = torch.lerp(wanted_C, taught_C, weight)
    frame_loss = functional.cross_entropy(logits_F2, wanted_F2)
    logits_C = chunk_logits(logits_F2, chunk_F, num_chunks)
    return frame_loss, functional.binary_cross_entropy_with_logits(logits_C, wanted_C)


def read_teacher(run: Path, word_bp: int) -> MiniModel:
    """Return the best model of a run that this program wrote.

    Raises:
        ValueError: Its DNA is cut into other words than those of `word_bp` bases.
    """
    settings = json.loads((run / SETTINGS_NAME).read_text())
    sizes = Sizes(**{field.name: settings[field.name] for field in fields(Sizes)})
    if sizes.word_bp != word_bp:
        raise ValueError(
            f"{run}: learned words of {sizes.word_bp} bases, wanted a teacher that knows those of "
            f"{word_bp}; give the same --word-bp"
        )
    model = MiniModel(sizes).eval().requires_grad_(False)
    model.load_state_dict(load_file(run / WEIGHTS_NAME))
    return model


def parse_arguments() -> argparse.Namespace:
    """Return the command line's settings; `sizes` is those of the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("genomes", type=Path, help="the .npz of tools.mini.pack_genomes")
    parser.add_argument("output", type=Path, help="the directory to write, or to go on in")
    parser.add_argument("--minutes", type=float, default=60.0, help="the whole training's")
    parser.add_argument(
        "--leg-minutes", type=float, default=1e9, help="stop sooner, to go on later"
    )
    parser.add_argument("--evaluate-seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-frames", type=int, default=1024, help="of each length, in a step")
    parser.add_argument("--num-valid", type=int, default=8192, help="valid frames of each length")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--mask-rate", type=float, default=0.2)
    parser.add_argument("--guess-weight", type=float, default=0.2)
    parser.add_argument("--pretrain-share", type=float, default=0.0)
    parser.add_argument("--max-mutation-rate", type=float, default=0.0, help="of codons")
    parser.add_argument("--teachers", type=Path, nargs="*", default=[], help="earlier outputs")
    parser.add_argument("--teacher-weight", type=float, default=0.7, help="the truth has the rest")
    parser.add_argument("--group-share", type=float, default=1.0, help="learn from fewer groups")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    for field in fields(Sizes):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=int, default=field.default, help="a size of the model")
    args = parser.parse_args()
    args.sizes = Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})
    return args


def write_settings(path: Path, args: argparse.Namespace, num_processes: int) -> None:
    """Write the settings as JSON: numbers, and how many processes and teachers there are."""
    numbers = {name: value for name, value in vars(args).items() if isinstance(value, int | float)}
    settings = {
        **numbers,
        "num_processes": num_processes,
        "num_teachers": len(args.teachers),
    }
    path.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Train as the command line says."""
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    training = Training(args)
    if training.accelerator.is_main_process:
        write_settings(args.output / SETTINGS_NAME, args, training.accelerator.num_processes)
    training.run()
    training.accelerator.end_training()


if __name__ == "__main__":
    main()
