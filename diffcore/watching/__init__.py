"""A training that is watched: samples from fixed noise every so many updates, what they are worth, and what follows."""
