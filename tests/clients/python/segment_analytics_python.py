"""segment-analytics-python as an application uses it, with nothing changed but its host, and gzip where that is asked for.

Usage: segment_analytics_python.py BASE_URL WRITE_KEY [gzip]

Prints what must arrive, one JSON object a line.
"""

import json
import sys

import segment.analytics as analytics
from segment.analytics.version import VERSION

from calls import calls


def main(base_url, write_key, encoding=None):
    errors = []
    analytics.write_key = write_key
    analytics.host = base_url
    analytics.gzip = encoding == "gzip"
    analytics.on_error = lambda error, batch: errors.append(f"{len(batch)} events were given up: {error}")

    for method, arguments, arrives in calls({"name": "analytics-python", "version": VERSION}):
        queued, message = getattr(analytics, method)(**arguments)
        if not queued:
            errors.append(f"a {method} was not queued")
        stamped = {"messageId": message["messageId"], "timestamp": message["timestamp"]}
        print(json.dumps(stamped | arrives))
    analytics.shutdown()
    return "\n".join(errors) or None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
