"""The console command `distill`: everything that a person types, under one roof."""
