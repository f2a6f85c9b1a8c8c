"""ANT: training against negative transfer between noise levels (Go et al., NeurIPS 2023, arXiv 2306.00354).

Timesteps are put into k intervals (`clustering`), each batch has its share of every one (`sampling`), and
the k losses are balanced by a gradient rule (`dmkit.training.rules`). `affinity` and `gap` measure what the
intervals do to each other.
"""
