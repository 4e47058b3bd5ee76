"""A network's proxy, which many clinics have, is not the way to what runs on this machine."""

import os

_HERE = "127.0.0.1,localhost"


def past_proxies() -> dict[str, str]:
    """The variables by which HTTP clients know where they need no proxy, with this machine among the places there.

    Some clients read one spelling first, some the other: both say all that either said.
    """
    named = ",".join(dict.fromkeys(filter(None, (os.environ.get("no_proxy"), os.environ.get("NO_PROXY")))))
    # A star alone means everywhere, and nothing beside others.
    told = named if named == "*" or _HERE in named else ",".join(filter(None, (named, _HERE)))
    return {"no_proxy": told, "NO_PROXY": told}
