"""Diffusion models made fast: schedules, denoisers, solvers, the ways to train a student, and what a student is worth.

A sampler is a denoiser, a solver and a trajectory; a student is trained by a method. Knows tensors and devices, nothing of
params.yaml, Prefect, DVC or MLflow.
"""
