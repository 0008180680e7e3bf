"""The training loop, who learns in it, and the state from which it goes on."""
