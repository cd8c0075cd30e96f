"""Models behind an OpenAI-compatible endpoint, by name: `openai:MODEL`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from lvlm_radapt.models.api import ApiModel
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.endpoint import KEY_VARIABLE, Endpoint
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.printing import one_line

PREFIX = "openai:"
RETRIES = 10
"""Of a request that met a rate limit, an overloaded server or a lost connection: about a minute, or what the server
asks for."""


@dataclass(frozen=True)
class Service:
    """How an endpoint is asked. base_url: None for what the client takes from its environment, else OpenAI's own.
    parallel: requests at a time. price: dollars for a million tokens in and out, "IN,OUT"; None counts no cost.

    UserError for a URL that is none or holds a key, and for a price that is no two numbers.
    """

    base_url: str | None = None
    parallel: int = 8
    price: str | None = None

    def __post_init__(self) -> None:
        if self.base_url is not None:
            try:
                parts = urlsplit(self.base_url)
                sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            except ValueError:
                sound = False
            if not sound:
                raise UserError(f"--base-url {self.base_url[:100]!r} is no URL: write it as http://127.0.0.1:8000/v1")
            if "@" in parts.netloc or parts.query or parts.fragment:
                raise UserError(f"--base-url may hold no key, which runs would record: set {KEY_VARIABLE}")
        self.prices()

    def prices(self) -> tuple[float, float] | None:
        """Dollars for a million tokens in and out."""
        if self.price is None:
            return None
        try:
            into, out = map(float, self.price.split(","))
        except ValueError:
            into = out = math.nan
        if not (0 <= into < math.inf and 0 <= out < math.inf):
            raise UserError(f"--price {self.price!r} is no IN,OUT in dollars for a million tokens, such as 0.15,0.60")
        return into, out


def is_api(name: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a model behind an endpoint."""
    return os.fspath(name).startswith(PREFIX)


def load_api(name: str, canvas_of: PixelModel, service: Service) -> ApiModel:
    """The model that answers there, on the canvas of another one. The key is read from the environment and kept by the
    client alone.

    UserError where the client is not installed, and where the endpoint cannot be reached or refuses the key.
    """
    try:
        import openai
    except ImportError as error:
        raise UserError(f"{name} needs the client openai: pip install 'lvlm-radapt[api]'") from error
    try:
        client = openai.OpenAI(
            base_url=service.base_url, api_key=os.environ.get(KEY_VARIABLE) or "none", max_retries=RETRIES
        )
        made = Endpoint(client, name.removeprefix(PREFIX))
    except openai.OpenAIError as error:
        raise UserError(f"{name}: {one_line(str(error))}") from error
    return ApiModel(made, canvas_of, name=name, parallel=service.parallel, price=service.prices())
