"""Pickled weights of others (EDM, EDM2, score_sde, torch.save), read without unpickling: no class of the file is imported and
no code of it runs."""

from diffcore.checkpoints.pickled.folder import CONFIG, WEIGHTS, save
from diffcore.checkpoints.pickled.layouts import Pickled, read
from diffcore.checkpoints.pickled.listing import entries, rows
from diffcore.checkpoints.pickled.objects import Name, Object
from diffcore.checkpoints.pickled.weights import Network, network

__all__ = ["CONFIG", "WEIGHTS", "Name", "Network", "Object", "Pickled", "entries", "network", "read", "rows", "save"]
