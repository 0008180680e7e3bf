"""The stages of the pipeline: each reads its section of params.yaml, opens paths, calls diffcore, writes its outputs."""
