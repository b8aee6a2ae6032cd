"""Find the proxy that the environment names for an address, to name it where a request fails."""

from __future__ import annotations

import os
import re
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # not in stubs


def proxy_hint(address: str) -> str:
    """Return what to do about the proxy by which requests to `address` go; empty without one.

    `$HTTP_PROXY` and the like may name a proxy that has ended, or that cannot reach this host.
    """
    scheme, _, rest = address.partition("://")
    # Not `urlsplit`, which refuses passwords with brackets in them, and shows them.
    host = re.split(r"[/?#]", rest.rpartition("@")[2])[0]
    names = (f"{scheme}_proxy", "all_proxy")
    spellings = (spelling for name in names for spelling in (name, name.upper()))
    variable = next((name for name in spellings if os.environ.get(name)), None)
    if variable is None or proxy_bypass_environment(host):
        return ""
    proxy = os.environ[variable].rpartition("@")[2].rpartition("://")[2]
    name = re.sub(r":\d*$", "", host)
    return (
        f"the request goes through the proxy '{proxy}' of ${variable}: unset it, or set "
        f"NO_PROXY={name}"
    )
