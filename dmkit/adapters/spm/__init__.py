"""SPM: concept erasing by rank-1 adapters that a prompt opens or closes.

Lyu et al., *One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications*,
CVPR 2024, arXiv 2312.16145.
"""
