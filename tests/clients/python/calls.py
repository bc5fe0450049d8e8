"""The calls that every Python client makes, and what must arrive of each, whichever SDK carries it."""

from datetime import date, datetime, timezone
from decimal import Decimal
from itertools import chain

# More than one request of any SDK holds.
COUNTED = 120

# Of these, 480 KB hold fewer, and no SDK takes longer ones.
LARGE = 20
LARGE_BYTES = 30_000

# Arrive as they are.
PLAIN = {
    "text": 'Grüße, 世界 👩‍🚀 \u200f\u2028 "quoted" \\ back / slash \t tab \x00 nul \x1f',
    "ключ": "a key that is not ASCII",
    "": "a key without a name",
    "null": None,
    "yes": True,
    "no": False,
    "beyond_i64": 2**63,
    "beyond_u64": 2**64 + 1,
    "beyond_f64": -(10**400),
    "tenth": 0.1,
    "tiny": 5e-324,
    "huge": 1e22,
    "minus_zero": -0.0,
    "nested": {"list": [1, [2, [3, {"deep": [None, {}, []]}]]], "empty": {}},
    "products": [{"sku": f"SKU-{n}", "price": n + 0.99, "tags": ["a", "b"]} for n in range(20)],
}

# What JSON has no word for: as it is given to the SDK, and as it must arrive.
TRANSLATED = {
    "moment": (datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc), "2026-01-02T03:04:05.678901+00:00"),
    "day": (date(2026, 1, 2), "2026-01-02"),
    "amount": (Decimal("19.90"), 19.9),
    "pair": (("left", 2), ["left", 2]),
}

RICH = PLAIN | {name: given for name, (given, _) in TRANSLATED.items()}
RICH_ARRIVES = PLAIN | {name: arrives for name, (_, arrives) in TRANSLATED.items()}

USER = "пользователь-1@example.test"


def calls(library):
    """Each call as (method, arguments, what must arrive); `library` is how the SDK names itself in `context`."""
    return chain(_kinds(library), _counted(), _large())


def _kinds(library):
    yield (
        "identify",
        {"user_id": USER, "traits": RICH},
        {"type": "identify", "userId": USER, "traits": RICH_ARRIVES, "context": {"library": library}},
    )
    yield (
        "identify",
        {"user_id": 2**53 + 1, "anonymous_id": None, "traits": {}},
        {"type": "identify", "userId": str(2**53 + 1), "anonymousId": None, "traits": {}},
    )
    yield (
        "track",
        {"user_id": USER, "event": "Order Completed ✔", "properties": RICH},
        {"type": "track", "userId": USER, "event": "Order Completed ✔", "properties": RICH_ARRIVES},
    )
    context = {"ip": "203.0.113.7", "locale": "de-CH", "campaign": {"name": "spring", "weight": 2**70}}
    integrations = {"All": False, "Mixpanel": {"groups": ["a"]}}
    yield (
        "track",
        {
            "anonymous_id": "anonymous-1",
            "event": "Long Ago",
            "timestamp": datetime(2020, 1, 1, 0, 0, 0, 250_000, timezone.utc),
            "context": dict(context),
            "integrations": integrations,
            "message_id": "given-by-the-application-1",
        },
        {
            "type": "track",
            "userId": None,
            "anonymousId": "anonymous-1",
            "event": "Long Ago",
            "properties": {},
            "timestamp": "2020-01-01T00:00:00.250+00:00",
            "context": context | {"library": library},
            "integrations": integrations,
            "messageId": "given-by-the-application-1",
        },
    )
    yield (
        "page",
        {"user_id": USER, "category": "Docs", "name": "Start", "properties": {"url": "http://example.test/?a=1&b=%20"}},
        {
            "type": "page",
            "userId": USER,
            "category": "Docs",
            "name": "Start",
            "properties": {"url": "http://example.test/?a=1&b=%20"},
        },
    )
    yield (
        "screen",
        {"anonymous_id": "anonymous-1", "category": "Shop", "name": "Cart", "properties": RICH},
        {
            "type": "screen",
            "anonymousId": "anonymous-1",
            "category": "Shop",
            "name": "Cart",
            "properties": RICH_ARRIVES,
        },
    )
    yield (
        "group",
        {"user_id": USER, "group_id": "group-1", "traits": RICH},
        {"type": "group", "userId": USER, "groupId": "group-1", "traits": RICH_ARRIVES},
    )
    yield (
        "alias",
        {"previous_id": "anonymous-1", "user_id": USER},
        {"type": "alias", "previousId": "anonymous-1", "userId": USER},
    )


def _counted():
    for number in range(COUNTED):
        properties = {"number": number}
        yield (
            "track",
            {"user_id": USER, "event": "Counted", "properties": properties},
            {"type": "track", "userId": USER, "event": "Counted", "properties": properties},
        )


def _large():
    for number in range(LARGE):
        properties = {"number": number, "text": "x" * LARGE_BYTES}
        yield (
            "track",
            {"user_id": USER, "event": "Large", "properties": properties},
            {"type": "track", "userId": USER, "event": "Large", "properties": properties},
        )
