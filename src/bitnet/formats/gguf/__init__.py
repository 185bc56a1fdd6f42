"""GGUF, the file format of llama.cpp and bitnet.cpp, to `Checkpoint` and back.

container.py reads the file's structure and container_writer.py writes it; metadata.py holds its keys and
values. block_types.py says which tensor types there are; ternary_blocks.py and float_blocks.py hold their
bits, tensors.py makes `Tensor`s of them. tensor_names.py, hyperparameters.py and vocabulary.py translate
names, shape and tokenizer. reader.py and writer.py put these together; i2_s_layout.py tells files apart whose
I2_S is another one.
"""

from bitnet.formats.gguf.reader import read_gguf

__all__ = ["read_gguf"]
