"""How good a model is: log-likelihoods, multiple choice, perplexity, an adapter for lm-evaluation-harness.

Everything goes through the `Model` protocol and follows lm-evaluation-harness in what it computes.
"""
