"""`distill advise`: from a teacher, images, numbers of network calls and a budget to a params.yaml with reasons."""
