"""`python -m tasks VERB`, which the script `stage` calls."""

import sys

from tasks import command

if __name__ == "__main__":
    sys.exit(command.end(command.main(sys.argv[1:])))
