import os
import sys
from urllib.parse import urlsplit

try:
    urlsplit(os.environ.get("PREFECT_API_URL", ""))
except ValueError as error:  # Prefect would end with a traceback as soon as it is imported
    print(f"error: PREFECT_API_URL is no address: {error}", file=sys.stderr)
    raise SystemExit(2) from None
