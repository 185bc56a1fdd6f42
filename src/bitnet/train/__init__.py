"""Training: text files in, packed checkpoint out; two-stage schedule, exact resume, bits per byte."""
