import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tasks import dvc_environment

# what Prefect, as soon as it is imported, would end with a traceback for
os.environ.update(dvc_environment.nameless(Path()))
try:
    urlsplit(os.environ.get("PREFECT_API_URL", ""))
except ValueError:
    print("error: PREFECT_API_URL is no address: write http://HOST:PORT/api, or unset it", file=sys.stderr)
    raise SystemExit(2) from None
