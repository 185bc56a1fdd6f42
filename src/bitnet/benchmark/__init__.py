"""What `bitnet bench` measures: llama-bench's cases, parity before numbers, peers in turn with us."""
