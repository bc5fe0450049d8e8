"""segment-analytics-python as an application uses it, with nothing changed but its host.

Usage: segment_analytics_python.py BASE_URL WRITE_KEY

Prints what must arrive, one JSON object a line.
"""

import json
import sys

import segment.analytics as analytics
from segment.analytics.version import VERSION

from calls import calls


def main(base_url, write_key):
    errors = []
    analytics.write_key = write_key
    analytics.host = base_url
    analytics.on_error = lambda error, batch: errors.append(f"{len(batch)} events were given up: {error}")

    for method, arguments, arrives in calls({"name": "analytics-python", "version": VERSION}):
        queued, message = getattr(analytics, method)(**arguments)
        if not queued:
            errors.append(f"a {method} was not queued")
        print(json.dumps({"messageId": message["messageId"]} | arrives))
    analytics.shutdown()
    return "\n".join(errors) or None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
