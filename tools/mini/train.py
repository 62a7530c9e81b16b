"""Trains the small model, or a teacher of it, on packed genomes.

    accelerate launch -m tools.mini.train train_1.npz train_2.npz run --minutes 60

`run/model` is the model that was best on the valid split so far, in the files that the backends and
the classifier read. `run/settings.json` says how it was trained, and `run/log.jsonl` has the
figures. From `run/state.safetensors` the same
command continues. The learning rate follows the clock and reaches 0 after `--minutes`, over all
legs. Some tokens are masked, and the encoders learn to guess them. `--teachers` takes
trained models, and the model also learns what these teachers say (Hinton et al. 2015,
arXiv:1503.02531) and how they embed proteins. `--protein-init` takes published weights of ESM-2,
with which the protein encoder begins. `--init` takes a trained model to begin with. A trained model
is `model` in the output of an earlier training, or `virnucpro/data/mini`.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional

from tools.mini.export import export_model
from tools.mini.genomes import keep_groups, read_genomes
from tools.mini.model import Masked, MiniModel
from tools.mini.sampling import Sampler
from tools.mini.settings import (
    COUNTED_BP,
    MODEL_NAME,
    SETTINGS_NAME,
    parse_arguments,
    write_settings,
)
from tools.mini.stretches import (
    DNA_MASK,
    DNA_SPECIAL,
    PROTEIN_MASK,
    ChunkTokens,
    Proteins,
    pack_proteins,
    read_chunks,
)
from tools.mini.teachers import (
    Teacher,
    ask_teachers,
    embedding_loss,
    load_protein,
    read_model,
    resize_protein,
)
from tools.mini.validation import VALID_LENGTHS_BP, make_valid_set, measure_records, score_chunks
from virnucpro.config import ComputeConfig, FrameRule
from virnucpro.runtime.run import Run
from virnucpro.training.loop import STEPS_PER_LOOK, TrainingLoop
from virnucpro.training.mutation import Mutator

WARM_UP_SHARE = 0.02
_FIRST_RESIDUE = 4


class Training(TrainingLoop):
    """The training of a small model: what is drawn, learned and measured.

    Attributes:
        losses: Those of the last step, by name, as this process sees them.
    """

    figure = "mean"
    network: MiniModel

    def __init__(self, args: Namespace) -> None:
        self.args = args
        has_gpu = torch.cuda.is_available()
        # Said even where there is no GPU: Accelerate otherwise makes each process a run of its own.
        # Between GPUs this one sends by NCCL, as every step sends all gradients.
        self.accelerator = Accelerator(cpu=not has_gpu)
        run = Run(ComputeConfig(precision="bf16" if has_gpu else "fp32"), self.accelerator)
        set_seed(args.seed)
        self.rule = FrameRule("stretches", args.num_stretches, args.min_codons)
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        self.teachers = [
            Teacher(path, args.sizes.word_bp, dtype, run.device) for path in args.teachers
        ]
        model = make_model(args, [teacher.protein_width for teacher in self.teachers])
        rates = {True: args.encoder_learning_rate or args.learning_rate, False: args.learning_rate}
        super().__init__(
            run,
            model.to(run.device),
            lambda name: rates[name.startswith("protein.")],
            args.output / "state.safetensors",
            seed=args.seed,
            weight_decay=args.weight_decay,
            betas=(0.9, 0.98),
        )
        if args.compile and has_gpu:
            model.compile_layers()
        self.generator = torch.Generator(run.device)
        self.generator.manual_seed(args.seed + 1000 * self.progress.step + run.rank)
        genomes = keep_groups(read_genomes(args.genomes, "train"), args.group_share).to(run.device)
        self.samplers = {
            length_bp: Sampler(genomes, length_bp, self.generator)
            for length_bp in set(args.chunk_lengths)
        }
        self.mutator = Mutator(args.max_mutation_rate, self.generator)
        valid = read_genomes(args.genomes, "valid").to(run.device)
        self.valid_sets = {
            length_bp: make_valid_set(valid, length_bp, args.num_valid)
            for length_bp in VALID_LENGTHS_BP
        }
        self.losses: dict[str, Tensor] = {}
        self.valid: dict[int, dict[str, float]] = {}
        self.seconds: dict[str, float] = {}
        self._lap_start = 0.0
        self.seconds_at_end = min(self.progress.seconds + 60 * args.leg_minutes, 60 * args.minutes)
        # The end of a leg is not that of the training.
        self.progress.is_done = self.is_over()

    def schedule(self) -> tuple[float, float]:
        """Follow the clock, over all legs."""
        share = self.progress.seconds / (60 * self.args.minutes)
        return share / WARM_UP_SHARE + 0.001, share

    def is_due(self) -> bool:
        """Measure after so many seconds each."""
        losses = self.progress.losses
        measured = losses[-1]["seconds"] if losses else 0.0
        return bool(self.progress.seconds - measured > self.args.evaluate_seconds)

    def is_over(self) -> bool:
        """End with the leg or the whole time."""
        return bool(self.progress.seconds >= self.seconds_at_end)

    def step(self) -> None:
        """Learn from one batch of each of the step's lengths."""
        # Of one step of many, as it waits for the GPU.
        self._is_timed = self.progress.step % STEPS_PER_LOOK == STEPS_PER_LOOK - 1
        self._lap("")
        super().step()
        self._lap("model")

    def learn(self) -> tuple[Tensor, int]:
        """Learn from whole and masked tokens of the same chunks, and from what teachers say."""
        args = self.args
        chunks, is_viral_C = self._draw()
        # All that the CPU must wait for comes first. Then it can start all kernels of the step.
        proteins = pack_proteins(chunks)
        masked = self._mask(chunks, proteins)
        self._lap("draw")
        wanted_C = is_viral_C.float()
        taught: list[Tensor] = []
        if self.teachers:
            taught_C, taught = ask_teachers(self.teachers, chunks, proteins)
            wanted_C = torch.lerp(wanted_C, taught_C.sigmoid(), args.teacher_weight)
        self._lap("teachers")
        with self._autocast():
            logits_C, guess, mapped = self.network(chunks, proteins, masked)
        is_scored_C = torch.cat([tokens.is_stretch_CN.any(1) for tokens in chunks])
        losses = {"chunk": chunk_loss(logits_C.float(), wanted_C, is_scored_C), "guess": guess}
        loss = losses["chunk"] + args.guess_weight * guess
        if mapped:
            is_stretch_F = torch.cat([tokens.is_stretch_CN.flatten() for tokens in chunks])
            pairs = zip(mapped, taught, strict=True)
            distances = [embedding_loss(ours, theirs, is_stretch_F) for ours, theirs in pairs]
            losses["embedding"] = torch.stack(distances).mean()
            loss = loss + args.embedding_weight * losses["embedding"]
        self.losses = {name: value.detach() for name, value in losses.items()}
        # Summed over all processes, this is the gradient of their mean loss.
        (loss / self._run.num_processes).backward()
        return loss.detach() * len(wanted_C), len(wanted_C)

    def _draw(self) -> tuple[list[ChunkTokens], Tensor]:
        """Return chunks of the step's lengths, and whether each is viral.

        Each length has about as many tokens. All processes take the same lengths at a time.
        """
        args = self.args
        lengths = [
            args.chunk_lengths[number % len(args.chunk_lengths)]
            for number in range(
                self.progress.step * args.lengths_per_step,
                (self.progress.step + 1) * args.lengths_per_step,
            )
        ]
        tokens, labels = [], []
        for length_bp in lengths:
            num_chunks = round(args.num_chunks * COUNTED_BP / length_bp / len(lengths))
            codes_CL, is_viral_C = self.samplers[length_bp].draw_labelled(num_chunks)
            if args.max_mutation_rate:
                codes_CL = self.mutator.mutate_chunks(codes_CL, self.rule)
            tokens.append(read_chunks(codes_CL, self.rule, args.sizes.word_bp))
            labels.append(is_viral_C)
        return tokens, torch.cat(labels)

    def _mask(self, chunks: list[ChunkTokens], proteins: Proteins) -> Masked:
        """Return the tokens, in half of the chunks some of them masked."""
        rate, dna, is_masked = self.args.mask_rate, [], []
        for one in chunks:
            is_masked_C1 = self._uniform(len(one.dna_CT), 1) < 0.5
            hit_CT = is_masked_C1 & (self._uniform(*one.dna_CT.shape) < rate)
            hit_CT &= one.dna_CT >= len(DNA_SPECIAL)
            dna.append((one.dna_CT.masked_fill(hit_CT, DNA_MASK), _find(hit_CT)))
            is_masked.append(is_masked_C1.expand_as(one.is_stretch_CN).flatten())
        tokens_T = proteins.token_ids_T
        hit_T = proteins.spread(torch.cat(is_masked)[proteins.order_F])
        hit_T &= (self._uniform(*tokens_T.shape) < rate) & (tokens_T >= _FIRST_RESIDUE)
        return Masked(tokens_T.masked_fill(hit_T, PROTEIN_MASK), _find(hit_T), dna)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self._run.device, generator=self.generator)

    def _autocast(self) -> torch.autocast:
        device = self._run.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._run.precision == "bf16")

    def _lap(self, name: str) -> None:
        """Note how long a part of a timed step took."""
        if not self._is_timed:
            return
        if self._run.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        if name:
            self.seconds[name] = now - self._lap_start
        self._lap_start = now

    def measure(self) -> dict[str, float]:
        """Return the mean AUROC over the lengths of the valid split; every process scores some."""
        mine = slice(self._run.rank, None, self._run.num_processes)
        for length_bp, valid_set in self.valid_sets.items():
            codes_CL = valid_set.codes_CL
            logits_C = torch.zeros(len(codes_CL), device=codes_CL.device)
            # Compiling for so few passes would take longer than they do.
            with self._autocast(), torch.compiler.set_stance("force_eager"):
                logits_C[mine] = score_chunks([self.network], codes_CL[mine], self.rule)
            self.valid[length_bp] = measure_records(self._run.sum(logits_C), valid_set)
        mean = sum(figures["all"] for figures in self.valid.values()) / len(self.valid)
        return {"mean": mean, "seconds": self.progress.seconds}

    def report(self, *, is_best: bool) -> None:
        """Log the figures, and write the model if it is the best yet."""
        if is_best:
            export_model(self.args.output / MODEL_NAME, self.network, self.rule)
        last = self.progress.losses[-1]
        document: dict[str, Any] = {
            "seconds": round(last["seconds"], 1),
            "step": last["step"],
            "best": is_best,
            "mean": round(last["mean"], 4),
            "valid": self.valid,
            "loss": {name: round(value.item(), 4) for name, value in self.losses.items()},
            "step_seconds": {name: round(value, 4) for name, value in self.seconds.items()},
        }
        line = json.dumps(document)
        print(line, flush=True)
        with (self.args.output / "log.jsonl").open("a") as file:
            file.write(line + "\n")


def make_model(args: Namespace, teacher_widths: list[int]) -> MiniModel:
    """Return the model as it is at first."""
    model = MiniModel(args.sizes, args.dropout, teacher_widths if args.embedding_weight else [])
    if args.protein_init is not None:
        load_protein(model, args.protein_init)
    if args.init is not None:
        first, _ = read_model(args.init)
        resize_protein(first, args.sizes.protein_layers)
        # The maps to teachers' embeddings are not kept with a model: they start anew.
        model.load_state_dict(first.state_dict(), strict=False)
    return model


def chunk_loss(logits_C: Tensor, wanted_C: Tensor, is_scored_C: Tensor) -> Tensor:
    """Return the mean cross-entropy of the chunks that have a stretch."""
    losses_C = functional.binary_cross_entropy_with_logits(logits_C, wanted_C, reduction="none")
    return (losses_C * is_scored_C).sum() / is_scored_C.sum().clamp(min=1)


def _find(is_hit: Tensor) -> Tensor:
    """Return the flat indexes of what is true."""
    return is_hit.flatten().nonzero().squeeze(1)


def main() -> None:
    """Train as the command line says."""
    args = parse_arguments(__doc__)
    args.output.mkdir(parents=True, exist_ok=True)
    training = Training(args)
    if training.accelerator.is_main_process:
        write_settings(args.output / SETTINGS_NAME, args, training.accelerator.num_processes)
    training.train()
    training.accelerator.end_training()


if __name__ == "__main__":
    main()
