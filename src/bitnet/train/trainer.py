"""The training loop and its folder.

OUT/training.json       the configuration          OUT/tokenizer/      tokenizer.json
OUT/state.safetensors   masters, moments, step     OUT/loss.csv, .png  the curve
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bitnet.errors import InputError
from bitnet.nn import Transformer
from bitnet.train.checkpointing import FILE, load_state, save_state
from bitnet.train.config import TrainingConfig
from bitnet.train.data import Batches, encode, read_documents
from bitnet.train.heldout import HeldOut, bits_per_byte
from bitnet.train.optimizer import build_optimizer, follow_schedule
from bitnet.train.progress import reporter
from bitnet.train.record import Record, plot
from bitnet.train.tokenizer import load_tokenizer, save_tokenizer

CONFIG_FILE, TOKENIZER_FOLDER = "training.json", "tokenizer"
_Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Trainer:
    """One run in one folder; `run` trains to the horizon or until a signal asks to stop."""

    def __init__(self, directory: Path, config: TrainingConfig, tokenizer: Tokenizer) -> None:
        """Build model and optimiser, from the folder's state if there is one.

        Raises:
            InputError: the vocabulary does not fit the model.
            FormatError: the folder's state is not of this model.
        """
        if tokenizer.get_vocab_size() > config.model.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.get_vocab_size()} entries, the model's vocab_size is "
                f"{config.model.vocab_size}; give --vocab-size {tokenizer.get_vocab_size()}"
            )
        self.directory, self.config, self.tokenizer = directory, config, tokenizer
        torch.manual_seed(config.seed)
        self.model = Transformer(config.model.with_quantization("online"))
        self.optimizer = build_optimizer(self.model, config)
        self.step = 0
        if (directory / FILE).exists():
            self.step = load_state(directory, self.model, self.optimizer)

    @classmethod
    def create(cls, directory: Path, config: TrainingConfig, tokenizer: Tokenizer) -> Trainer:
        """Start a run in a new folder.

        Raises:
            InputError: the folder holds a run already, or the vocabulary does not fit the model.
        """
        if (directory / CONFIG_FILE).exists():
            raise InputError(f"{directory}: holds a training run already; add --resume to continue it")
        trainer = cls(directory, config, tokenizer)
        save_tokenizer(tokenizer, directory / TOKENIZER_FOLDER, config.model.max_position_embeddings)
        config.save(directory / CONFIG_FILE)
        return trainer

    @classmethod
    def resume(cls, directory: Path, changes: Mapping[str, Any] | None = None) -> Trainer:
        """Continue the run of a folder.

        Args:
            changes: fields of its configuration to replace: another horizon, other texts, longer sequences.
        Raises:
            FormatError: there is no run, or its files are damaged.
            InputError: a step would hold another number of tokens, in which schedule and record count.
        """
        config = TrainingConfig.load(directory / CONFIG_FILE)
        changed = replace(config, **(changes or {}))
        if changed.tokens_per_step != config.tokens_per_step:
            raise InputError(
                f"{directory}: a step of this run holds {config.tokens_per_step} tokens, not "
                f"{changed.tokens_per_step}; keep batch times sequence length"
            )
        trainer = cls(directory, changed, load_tokenizer(directory / TOKENIZER_FOLDER))
        if changed != config:
            changed.save(directory / CONFIG_FILE)
        return trainer

    def run(self) -> bool:
        """Train; saves at intervals, at the end, and when SIGINT or SIGTERM arrives.

        Returns:
            Whether the horizon was reached.
        Raises:
            FormatError, InputError: a text is missing, damaged or too short.
            ResourceError: the disk is full.
        """
        config = self.config
        batches = self._batches()
        texts = [HeldOut.read(Path(path), self.tokenizer) for path in config.heldout]
        record = Record(self.directory, [text.name for text in texts], self.step)
        loss_function = torch.compile(self.model.loss) if config.compile else self.model.loss
        interval = _Interval(time.perf_counter())
        with _stop_signals() as stop, reporter(config.steps) as report:
            while self.step < config.steps and not stop:
                loss, norm = self._update(loss_function, *batches.batch(self.step, config.batch_size))
                interval.add(loss, norm)
                report.step(self.step, loss)
                last = self.step == config.steps
                evaluate = last or self.step % config.evaluate_every == 0
                if evaluate or self.step % config.log_every == 0:
                    row = self._row(interval)
                    results = self._evaluate(texts) if evaluate else {}
                    record.add(row | {f"heldout:{name}": value for name, value in results.items()})
                    report.evaluation(self.step, results)
                    interval = _Interval(time.perf_counter())
                if last or self.step % config.save_every == 0:
                    save_state(self.directory, self.model, self.optimizer, self.step)
        if stop:
            save_state(self.directory, self.model, self.optimizer, self.step)
        plot(self.directory)
        return self.step == config.steps

    def _update(
        self, loss_function: _Loss, inputs: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> tuple[float, float]:
        """One optimiser step; returns the batch's loss and the gradient's norm before clipping."""
        config = self.config
        follow_schedule(self.optimizer, config, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = loss_function(torch.from_numpy(inputs), torch.from_numpy(targets))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item(), norm.item()

    def _batches(self) -> Batches:
        sources = self.config.data
        streams = [encode(self.tokenizer, read_documents(Path(source.path))) for source in sources]
        return Batches(streams, sources, self.config.sequence_length, self.config.seed)

    def _row(self, interval: _Interval) -> dict[str, float]:
        """The numbers of the interval that ends with the step just done."""
        tokens = self.config.tokens_per_step
        return {
            "step": self.step,
            "tokens": self.step * tokens,
            "loss": interval.loss / interval.steps,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "weight_decay": self.optimizer.param_groups[0]["weight_decay"],
            "gradient_norm": interval.norm / interval.steps,
            "tokens_per_second": interval.steps * tokens / (time.perf_counter() - interval.started),
        }

    def _evaluate(self, texts: list[HeldOut]) -> dict[str, float]:
        """Bits per byte of every held-out text."""
        return {text.name: bits_per_byte(self.model, text, self.config.sequence_length) for text in texts}


@dataclass
class _Interval:
    """Sums since the last row of the record."""

    started: float
    steps: int = 0
    loss: float = 0.0
    norm: float = 0.0

    def add(self, loss: float, norm: float) -> None:
        self.steps += 1
        self.loss += loss
        self.norm += norm


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGINT or SIGTERM arrives; a second signal acts as it always does."""
    received: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in signals:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
