"""`python -m tasks VERB`, which the script `stage` calls."""

import sys

from tasks import command

sys.exit(command.end(command.main(sys.argv[1:])))
