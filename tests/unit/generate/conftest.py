"""A model small enough to be checked by hand: the protocol in NumPy, and a tokenizer to go with it."""

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Core

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.tokenizer import Tokenizer

CONTROLS = ["<bos>", "<end>", "<turn>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class ToyCache:
    def __init__(self, capacity):
        self.capacity = capacity
        self.ids = []

    @property
    def length(self):
        return len(self.ids)

    def truncate(self, length):
        assert 0 <= length <= len(self.ids)
        del self.ids[length:]


class ToyModel:
    """Logits are a function of everything in the cache, so a wrong cache shows in the answer.

    `script` overrides them: the ids it lists get the highest logit, one a call. `runs` records how many ids
    each call got.
    """

    def __init__(self, tokenizer, vocab_size, context=64, script=()):
        self.config = ModelConfig(
            vocab_size=vocab_size,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=context,
        )
        self.tokenizer = tokenizer
        self.stop_tokens = frozenset({1, 2})
        self.script = list(script)
        self.runs = []

    def new_cache(self, max_tokens):
        assert 1 <= max_tokens <= self.config.max_position_embeddings
        return ToyCache(max_tokens)

    def forward(self, batch, all_logits=False):
        ((cache, ids),) = batch
        if cache.length + len(ids) > cache.capacity or not ids:
            raise InputError("cache full, or nothing to run")
        cache.ids += ids
        self.runs.append(len(ids))
        state = sum((place + 1) * token for place, token in enumerate(cache.ids))
        logits = np.random.default_rng(state).normal(0, 2, self.config.vocab_size).astype(np.float32)
        logits[[1, 2]] = -20  # no stop token by chance
        if self.script:
            logits[self.script.pop(0)] = 50
        return [logits]


@pytest.fixture(scope="session")
def tokenizer():
    """Three control tokens, every byte, and one merge: `ye`, the last id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: 3 + place for place, char in enumerate(alphabet)}
    vocab |= {**dict(zip(CONTROLS, range(3), strict=True)), "ye": 259}
    core = Core(models.BPE(vocab=vocab, merges=[("y", "e")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROLS])
    return Tokenizer(core, {"bos_token": "<bos>", "chat_template": TEMPLATE})


@pytest.fixture
def toy(tokenizer):
    """toy(answer="…") says that text, then <turn>; toy() says what its logits say."""

    def make(answer=None, context=64, with_tokenizer=True):
        script = () if answer is None else [*tokenizer.encode(answer, add_bos=False), 2]
        return ToyModel(tokenizer if with_tokenizer else None, tokenizer.vocab_size, context, script)

    return make
