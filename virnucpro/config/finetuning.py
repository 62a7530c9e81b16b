"""The settings of a fine-tuning, which `train` does with `--finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virnucpro.backend.interface import ALPHABETS, Alphabet
from virnucpro.config.options import option, option_name
from virnucpro.config.shared import FramesConfig
from virnucpro.errors import UsageError

FINETUNED = ("none", "protein", "dna", "both")

# Adapters begin at nothing and take large steps. All weights of a trained model take small ones.
_ADAPTER_RATE, _WHOLE_RATE = 1e-3, 4e-4


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig(FramesConfig, group="Fine-tuning"):
    """Which encoders are trained together with the classifier, and how."""

    finetune: str = option(
        "none",
        help="Encoders to fine-tune together with the classifier.",
        details="The classifier's file then holds what has changed in them, and predict merges it "
        "into the weights when it loads them.",
        choices=FINETUNED,
    )
    finetune_all: bool = option(
        False,
        help="Train all weights of the encoders, instead of low-rank adapters (LoRA).",
        details="Use it for small models only: the classifier's file then holds all weights in "
        "float32.",
    )
    lora_rank: int = option(8, help="Rank of the adapters.", minimum=1)
    lora_targets: str | None = option(
        None,
        help="Kinds of linear layers that get adapters, for example qkv,out.",
        unset="all",
        details="virnucpro backends --json names the kinds of each backend.",
        metavar="KIND[,KIND...]",
    )
    learning_rate: float = option(
        None,
        help="Largest learning rate of the encoders.",
        unset=f"{_ADAPTER_RATE:g}, and {_WHOLE_RATE:g} with --finetune-all",
        metavar="RATE",
        within="positive",
    )
    steps: int = option(
        2000,
        help="Number of steps.",
        details="Fine-tuning ends earlier if ten evaluations in a row find nothing better.",
        minimum=1,
    )
    minutes: float | None = option(
        None,
        help="Minutes after which fine-tuning ends with the best weights so far.",
        details="The calibration and the report come after that. The learning rate then follows "
        "the clock, so a second run gives other weights.",
        metavar="MINUTES",
        within="positive",
    )
    step_chunks: int = option(
        256, help="Chunks that each step learns from, over all processes.", minimum=2
    )
    micro_batch_tokens: int = option(
        16384,
        help="Tokens that a process computes at once. The gradients of a step are summed.",
        details="Fewer tokens take less memory. Only rounding changes with them.",
        metavar="TOKENS",
        minimum=1,
    )
    gradient_checkpointing: bool = option(
        False,
        help="Compute hidden states twice instead of keeping them, to save memory.",
        details="Large models may need this. A step then takes longer.",
    )
    max_mutation_rate: float = option(
        0.6,
        help="Largest share of codons that is replaced, each by a codon of a similar residue.",
        details="Each stretch has a share of its own, from 0 to this.",
        metavar="SHARE",
        within="score",
    )
    evaluate_steps: int = option(
        100, help="Steps between evaluations on held-out records.", metavar="STEPS", minimum=1
    )
    teacher: Path | None = option(
        None,
        help="Classifier of any size to learn from, besides the truth (distillation).",
        details="It needs the same frame rule and length of chunks. Its own weights are loaded "
        "beside those that are trained.",
        metavar="FILE",
        path="file",
    )
    teacher_weight: float = option(
        0.8,
        help="Share of the teacher's answer in what is learned; the rest is the label.",
        metavar="SHARE",
        within="share",
    )
    teacher_dna_weights: str | None = option(
        None,
        help="Weights of the teacher's DNA backend.",
        unset="where they were in its training",
        metavar="WEIGHTS",
    )
    teacher_protein_weights: str | None = option(
        None,
        help="Weights of the teacher's protein backend.",
        unset="where they were in its training",
        metavar="WEIGHTS",
    )

    def __post_init__(self) -> None:
        self._set_default("learning_rate", _WHOLE_RATE if self.finetune_all else _ADAPTER_RATE)
        super().__post_init__()
        # Silently ignored, they would let somebody wait for what never happens.
        ignored = [
            option_name(name)
            for name in ("finetune_all", "lora_targets", "minutes", "teacher")
            if getattr(self, name)
        ]
        if ignored and not self.finetuned:
            raise UsageError(
                f"{', '.join(ignored)}: only for a fine-tuning; say what to fine-tune, for "
                "example --finetune protein"
            )
        if self.finetune_all and self.lora_targets is not None:
            raise UsageError(
                "--lora-targets: --finetune-all trains all weights and has no adapters; leave one "
                "out"
            )
        if self.finetune != "none" and self.precision in ("fp8", "fp16"):
            raise UsageError(
                f"precision {self.precision}: fine-tuning computes in bf16 or fp32; choose one"
            )

    @property
    def finetuned(self) -> tuple[Alphabet, ...]:
        """What the encoders read that are fine-tuned."""
        both = self.finetune == "both"
        return tuple(name for name in ALPHABETS if both or name == self.finetune)
