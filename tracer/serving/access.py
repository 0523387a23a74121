"""Who may ask: this machine, with this session's token, from this server's own page.

A page of another site can make a browser send requests to 127.0.0.1, under that address or under
a name of its own that resolves to it (DNS rebinding). The first is told by `Origin` and
`Sec-Fetch-Site`, the second by `Host`; neither knows the token.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

TOKEN_HEADER = "X-Tracer-Token"
ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
SITES = ("same-origin", "none")
"""What browsers say of requests of the page itself, and of an address that was typed."""


@dataclass(frozen=True)
class Access:
    """What a request must bring."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def url(self) -> str:
        """Where the page is, with its token."""
        return f"http://{ADDRESS}:{self.port}/?token={self.token}"

    def refusal(self, headers: Mapping[str, str], token: str | None) -> str | None:
        """Why a request is refused.

        Args:
            headers: of the request, by name.
            token: that it brought, in its address or its header.

        Returns:
            One line, or None where it may pass.
        """
        headers = {name.lower(): value for name, value in headers.items()}
        hosts = [f"{name}:{self.port}" for name in NAMES]
        if headers.get("host") not in hosts:
            return f"Host is not {hosts[0]}"
        origin = headers.get("origin")
        if origin is not None and origin not in [f"http://{host}" for host in hosts]:
            return "Origin is another site"
        site = headers.get("sec-fetch-site")
        if site is not None and site not in SITES:
            return "the request comes from another site"
        if token is None or not secrets.compare_digest(token.encode(), self.token.encode()):
            return "the token is missing or wrong: open the address that tracer view printed"
        return None
