"""Text to ids and back: the tokenizer of a checkpoint, incremental detokenising, chat templates."""

from bitnet.tokenizer.chat_template import CHAT_TEMPLATE_2B4T, ChatTemplate
from bitnet.tokenizer.detokenizer import Detokenizer
from bitnet.tokenizer.sealing import RenderedChat
from bitnet.tokenizer.tokenizer import Tokenizer

__all__ = ["CHAT_TEMPLATE_2B4T", "ChatTemplate", "Detokenizer", "RenderedChat", "Tokenizer"]
