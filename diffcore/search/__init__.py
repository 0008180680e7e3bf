"""What is estimated of a teacher before it is sampled: Gamma, least-cost and fitted trajectories."""
