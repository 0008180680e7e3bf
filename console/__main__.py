"""`python -m console VERB`: what `distill VERB` becomes in the project's root."""

import sys

from console.start import ask
from tasks import command

if __name__ == "__main__":
    sys.exit(command.end(command.main(sys.argv[1:], ask)))
