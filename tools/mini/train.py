"""Trains the small model, or a teacher of it, on packed genomes.

    accelerate launch -m tools.mini.train train_1.npz train_2.npz run --minutes 60

It writes three things. `run/model` is the model that was best on the valid split so far, in the
files that the backends and the classifier read. `run/log.jsonl` has the figures. From `run/state`
the same command continues. The learning rate follows the clock and reaches 0 after `--minutes`,
over all legs. Some tokens are masked, and the encoders learn to guess them. `--teachers` takes the
directories of earlier runs, and the model also learns what these teachers say (Hinton et al. 2015,
arXiv:1503.02531) and how they embed proteins. `--protein-init` takes published weights of ESM-2,
with which the protein encoder begins. `--init` takes an earlier run, whose weights all begin with.
"""

from __future__ import annotations

import json
import math
import time
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tools.mini.export import export_model
from tools.mini.genomes import keep_groups, read_genomes
from tools.mini.model import MiniModel
from tools.mini.sampling import Sampler
from tools.mini.settings import parse_arguments, write_settings
from tools.mini.stretches import (
    DNA_MASK,
    DNA_SPECIAL,
    PROTEIN_MASK,
    ChunkTokens,
    read_chunks,
)
from tools.mini.teachers import (
    SETTINGS_NAME,
    WEIGHTS_NAME,
    ask_teachers,
    embedding_loss,
    load_protein,
    read_run,
    read_teacher,
)
from tools.mini.validation import (
    CHUNK_BP,
    VALID_LENGTHS_BP,
    make_valid_set,
    measure_records,
    score_chunks,
)
from virnucpro.config import FrameRule
from virnucpro.training.mutation import Mutator

WARM_UP_SHARE = 0.02
EMA_DECAY = 0.998
STEPS_PER_CLOCK = 20
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

    def __init__(self, args: Namespace) -> None:
        self.args = args
        has_gpu = torch.cuda.is_available()
        # Said even where there is no GPU: Accelerate otherwise makes each process a run of its own.
        self.accelerator = Accelerator(cpu=not has_gpu, mixed_precision="bf16" if has_gpu else "no")
        set_seed(args.seed)
        device = self.accelerator.device
        self.rule = FrameRule("stretches", args.num_stretches, args.min_codons)
        teachers = [read_teacher(run, args.sizes.word_bp).to(device) for run in args.teachers]
        self.teachers = nn.ModuleList(teachers)
        widths = [teacher.sizes.protein_width for teacher in teachers]
        model = MiniModel(args.sizes, args.dropout, widths if args.embedding_weight else [])
        if args.protein_init is not None:
            load_protein(model, args.protein_init)
        if args.init is not None:
            # The maps to teachers' embeddings are not kept with a run: they start anew.
            model.load_state_dict(read_run(args.init)[0].state_dict(), strict=False)
        model = model.to(device)
        self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.ema.requires_grad_(False)
        optimizer = make_optimizer(model, args)
        if args.compile:
            for one in (model, *teachers):
                one.compile_layers()
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
            length_bp: Sampler(genomes, length_bp, self.generator)
            for length_bp in set(args.chunk_lengths)
        }
        self.mutator = Mutator(args.max_mutation_rate, self.generator)
        valid = read_genomes(args.genomes, "valid").to(device)
        self.valid_sets = {
            length_bp: make_valid_set(valid, length_bp, args.num_valid)
            for length_bp in VALID_LENGTHS_BP
        }
        self.seconds: dict[str, float] = {}

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
        """Learn from one batch of each of the step's lengths, and return the losses."""
        args, clock = self.args, self.clock
        progress = clock.seconds / (60 * args.minutes)
        warm = min(1.0, progress / WARM_UP_SHARE + 0.001)
        share = warm * (1 + math.cos(math.pi * min(progress, 1))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self._lap("")
        whole, is_viral_C = self._draw()
        seen = [self._mask(tokens) for tokens in whole]
        self._lap("draw")
        wanted_C = is_viral_C.float()
        taught: list[Tensor] = []
        if self.teachers:
            with self.accelerator.autocast():
                taught_C, taught = ask_teachers(self.teachers, whole)
            wanted_C = torch.lerp(wanted_C, taught_C.sigmoid(), args.teacher_weight)
        self._lap("teachers")
        logits_C, guess, mapped = self.model(whole, seen)
        is_scored_C = torch.cat([tokens.is_stretch_CN.any(1) for tokens in whole])
        losses = {"chunk": chunk_loss(logits_C.float(), wanted_C, is_scored_C), "guess": guess}
        loss = losses["chunk"] + args.guess_weight * guess
        if mapped:
            is_stretch_F = torch.cat([tokens.is_stretch_CN.flatten() for tokens in whole])
            pairs = zip(mapped, taught, strict=True)
            distances = [embedding_loss(ours, theirs, is_stretch_F) for ours, theirs in pairs]
            losses["embedding"] = torch.stack(distances).mean()
            loss = loss + args.embedding_weight * losses["embedding"]
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        self._lap("model")
        clock.step += 1
        return losses

    def _draw(self) -> tuple[list[ChunkTokens], Tensor]:
        """Return chunks of the step's lengths, and whether each is viral.

        Each length has about as many tokens. All processes take the same lengths at a time.
        """
        args = self.args
        lengths = [
            args.chunk_lengths[number % len(args.chunk_lengths)]
            for number in range(
                self.clock.step * args.lengths_per_step,
                (self.clock.step + 1) * args.lengths_per_step,
            )
        ]
        tokens, labels = [], []
        for length_bp in lengths:
            num_chunks = round(args.num_chunks * CHUNK_BP / length_bp / len(lengths))
            codes_CL, is_viral_C = self.samplers[length_bp].draw_labelled(num_chunks)
            if args.max_mutation_rate:
                codes_CL = self.mutator.mutate_chunks(codes_CL, self.rule)
            tokens.append(read_chunks(codes_CL, self.rule, args.sizes.word_bp))
            labels.append(is_viral_C)
        return tokens, torch.cat(labels)

    def _mask(self, tokens: ChunkTokens) -> ChunkTokens:
        """Return the tokens, in half of the chunks some of them masked."""
        dna_CT, protein_CNT = tokens.dna_CT, tokens.protein_CNT
        is_masked_C1 = self._uniform(len(dna_CT), 1) < 0.5
        dna_hit_CT = is_masked_C1 & (self._uniform(*dna_CT.shape) < self.args.mask_rate)
        protein_hit_CNT = self._uniform(*protein_CNT.shape) < self.args.mask_rate
        protein_hit_CNT &= is_masked_C1[..., None]
        return tokens._replace(
            dna_CT=dna_CT.masked_fill(dna_hit_CT & (dna_CT >= len(DNA_SPECIAL)), DNA_MASK),
            protein_CNT=protein_CNT.masked_fill(
                protein_hit_CNT & (protein_CNT >= _FIRST_RESIDUE), PROTEIN_MASK
            ),
        )

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.accelerator.device, generator=self.generator)

    def _lap(self, name: str) -> None:
        """Note how long a part of the step took; measured in one step of many, as it waits."""
        if self.clock.step % STEPS_PER_CLOCK != STEPS_PER_CLOCK - 1:
            return
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        if name:
            self.seconds[name] = now - self._lap_start
        self._lap_start = now

    def evaluate(self, losses: dict[str, Tensor]) -> None:
        """Log the figures on the valid split, and keep the model if it is the best yet."""
        clock, accelerator = self.clock, self.accelerator
        clock.evaluated = clock.seconds
        model = self.ema.module.eval()
        found = {}
        for length_bp, valid_set in self.valid_sets.items():
            # Every process scores some of the chunks; the sum has those of all.
            num = accelerator.num_processes
            mine = slice(accelerator.process_index, None, num)
            codes_CL = valid_set.codes_CL
            logits_C = torch.zeros(len(codes_CL), device=codes_CL.device)
            with accelerator.autocast():
                logits_C[mine] = score_chunks([model], codes_CL[mine], self.rule)
            logits_C = accelerator.reduce(logits_C, "sum")
            if accelerator.is_main_process:
                found[length_bp] = measure_records(logits_C, valid_set)
        if not accelerator.is_main_process:
            return
        mean = sum(figures["all"] for figures in found.values()) / len(found)
        is_best = mean > clock.best
        if is_best:
            clock.best = mean
            export_model(self.args.output / "model", model, self.rule)
            save_file(model.state_dict(), self.args.output / WEIGHTS_NAME)
        document: dict[str, Any] = {
            "seconds": round(clock.seconds, 1),
            "step": clock.step,
            "best": is_best,
            "mean": round(mean, 4),
            "valid": found,
            "loss": {name: round(value.item(), 4) for name, value in losses.items()},
            "step_seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }
        line = json.dumps(document)
        print(line, flush=True)
        with (self.args.output / "log.jsonl").open("a") as file:
            file.write(line + "\n")


def make_optimizer(model: MiniModel, args: Namespace) -> torch.optim.AdamW:
    """Return AdamW, with a learning rate of its own for the protein encoder.

    Matrices decay, other parameters do not.
    """
    encoder = {id(value) for value in model.protein.parameters()}
    rates = {True: args.encoder_learning_rate or args.learning_rate, False: args.learning_rate}
    groups = []
    for in_encoder, peak in rates.items():
        for decay in (args.weight_decay, 0.0):
            chosen = [
                value
                for value in model.parameters()
                if (id(value) in encoder) == in_encoder and (value.ndim > 1) == (decay > 0)
            ]
            groups.append({"params": chosen, "weight_decay": decay, "peak": peak})
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))


def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
    """Move the running averages towards the weights: far at first, less and less, at last a little.

    With a constant decay the first of a short training would outweigh all that follow.
    """
    seen = int(num_averaged)
    get_ema_multi_avg_fn(min(EMA_DECAY, (1 + seen) / (10 + seen)))(averaged, current, num_averaged)


def chunk_loss(logits_C: Tensor, wanted_C: Tensor, is_scored_C: Tensor) -> Tensor:
    """Return the mean cross-entropy of the chunks that have a stretch."""
    losses_C = functional.binary_cross_entropy_with_logits(logits_C, wanted_C, reduction="none")
    return (losses_C * is_scored_C).sum() / is_scored_C.sum().clamp(min=1)


def main() -> None:
    """Train as the command line says."""
    args = parse_arguments(__doc__)
    args.output.mkdir(parents=True, exist_ok=True)
    training = Training(args)
    if training.accelerator.is_main_process:
        write_settings(args.output / SETTINGS_NAME, args, training.accelerator.num_processes)
    training.run()
    training.accelerator.end_training()


if __name__ == "__main__":
    main()
