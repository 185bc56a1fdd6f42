import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Core


@pytest.fixture
def byte_level():
    """A function that makes a small byte-level BPE: <bos> is 0, <eot> 1."""

    def make(controls=("<bos>", "<eot>"), post_processor=True):
        core = Core(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in controls],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(["the cat sat on the mat; Обед 日本語 😀 "] * 9, trainer)
        if post_processor:
            core.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 0)])
        return core

    return make
