"""Which addresses are this machine's own."""

from __future__ import annotations

import ipaddress

import httpx


def is_loopback(host_or_url: str) -> bool:
    """Say whether a host, such as `::1`, or the host of a URL can be reached from this machine alone."""
    host = host_or_url
    if "://" in host_or_url:
        try:
            host = httpx.URL(host_or_url).host
        except httpx.InvalidURL:
            return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
