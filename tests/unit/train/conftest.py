"""A text, a tokenizer and a configuration small enough to train in a second."""

from pathlib import Path

import pytest
import torch

from bitnet.train.config import DataSource, TrainingConfig
from bitnet.train.step import TrainingStep
from bitnet.train.tokenizer import train_tokenizer

STORY = "The cat sat on the mat and the dog sat on the cat. The end of the story came, and so it goes."


@pytest.fixture(autouse=True, scope="session")
def single_thread():
    """Matrices this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def story_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "story.txt"
    path.write_text("\n<|endoftext|>\n".join([STORY] * 60) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(story_file):
    return train_tokenizer([DataSource(str(story_file))], 280, seed=0)


@pytest.fixture
def values(story_file) -> dict:
    """A configuration as YAML would give it."""
    return {
        "model": {
            "vocab_size": 280,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "data": {
            "sources": [{"path": str(story_file), "passes": 40}],
            "heldout": [str(story_file)],
            "batch_size": 4,
            "sequence_length": 32,
        },
        "schedule": {
            "horizon": 12,
            "learning_rate": {"peak": 1e-2, "second_peak": 6e-3, "warmup": 3},
        },
        "report": {"log_every": 2, "evaluate_every": 6, "save_every": 5, "codes_every": 6},
    }


@pytest.fixture
def config(values) -> TrainingConfig:
    return TrainingConfig.from_dict(values)


@pytest.fixture
def interrupt(monkeypatch):
    """Have something happen after a given step."""

    def at(step: int, what) -> None:
        call, count = TrainingStep.__call__, [0]

        def wrapped(self, *arguments):
            result = call(self, *arguments)
            count[0] += 1
            if count[0] == step:
                what()
            return result

        monkeypatch.setattr(TrainingStep, "__call__", wrapped)

    return at
