"""rudder-sdk-python as an application uses it, with nothing changed but its host.

Usage: rudder_sdk_python.py BASE_URL WRITE_KEY

Prints what must arrive, one JSON object a line.
"""

import json
import sys

from rudderstack.analytics.client import Client
from rudderstack.analytics.version import VERSION

from calls import calls

LIBRARY = {"name": "analytics-python", "version": VERSION}


def main(base_url, write_key):
    errors = []
    client = Client(
        write_key,
        host=base_url,
        on_error=lambda error, batch: errors.append(f"{len(batch)} events were given up: {error}"),
    )

    for method, arguments, arrives in calls(LIBRARY):
        arrives = as_rudder_sends(arguments, arrives)
        queued, message = getattr(client, method)(**arguments)
        if not queued:
            errors.append(f"a {method} was not queued")
        stamped = {"messageId": message["messageId"], "timestamp": message["timestamp"]}
        print(json.dumps(stamped | arrives))
    client.shutdown()
    return "\n".join(errors) or None


def as_rudder_sends(arguments, arrives):
    """The traits of an identify are in its context only, times have six digits, and integrations are never empty."""
    arrives = {"channel": "server", "integrations": {"All": True}} | arrives
    if arrives["type"] == "identify":
        arrives["context"] = {"library": LIBRARY, "traits": arrives.pop("traits")}
    if "timestamp" in arguments:
        arrives["timestamp"] = arguments["timestamp"].isoformat()
    return arrives


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
