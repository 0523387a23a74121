"""An OpenAI-compatible endpoint: asked within a budget, patiently, and never the same thing twice.

The key comes from an environment variable and goes nowhere but into the request's header.
"""

import json
import os
import time
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from graphs.exchange.files import writing
from tracer.errors import TraceError

KEY = "OPENAI_API_KEY"
"""Environment variable that holds the key, where the endpoint wants one."""
AGAIN = {408, 409, 429, 500, 502, 503, 504}
"""Answers after which it is worth asking again."""
LONGEST_WAIT = 60.0
"""Seconds."""


class SpentError(TraceError):
    """As many requests were made as were allowed."""


@dataclass(eq=False)
class Endpoint:
    """A language model behind HTTP.

    Attributes:
        url: of the API, as in http://localhost:8000/v1.
        model_name: as the endpoint knows it.
        cache: folder of answers already given; None keeps none.
        budget: requests that may be made; answers from the cache are free.
        key_variable: environment variable with the key.
        tries: times that one request is made before it has failed.
        wait: seconds before the second try; twice as long before each further one.
        timeout: seconds until an answer counts as missing.
        asked: requests made so far.
    """

    url: str
    model_name: str
    cache: Path | None = None
    budget: int = 200
    key_variable: str = KEY
    tries: int = 5
    wait: float = 1.0
    timeout: float = 60.0
    asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise TraceError(f"endpoint {self.url!r}: expected an address such as http://host/v1")

    def ask(self, system: str, user: str) -> str:
        """The model's answer to one question, at temperature 0.

        Returns:
            Its text.

        Raises:
            SpentError: no request is left, and the answer is not in the cache.
            TraceError: the endpoint refuses, does not answer, or says what is no answer.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body = {"model": self.model_name, "temperature": 0, "messages": messages}
        sent = json.dumps(body, ensure_ascii=False, sort_keys=True).encode()
        kept = self._kept(sent)
        if kept is not None and kept.is_file():
            return str(json.loads(kept.read_text(encoding="utf-8"))["answer"])
        answer = self._content(self._request(sent))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            said = json.dumps({"request": body, "answer": answer}, ensure_ascii=False)
            with writing(kept) as partial:
                partial.write_text(said, encoding="utf-8")
        return answer

    def _kept(self, sent: bytes) -> Path | None:
        return None if self.cache is None else self.cache / f"{sha256(sent).hexdigest()}.json"

    def _request(self, sent: bytes) -> Any:
        """The JSON of an answer, tried several times."""
        for number in range(self.tries):
            if self.asked >= self.budget:
                raise SpentError(f"endpoint: {self.budget} requests were made; raise the budget")
            self.asked += 1
            last = number + 1 == self.tries
            pause = self.wait * 2**number
            try:
                return self._once(sent)
            except HTTPError as error:
                if error.code not in AGAIN or last:
                    raise TraceError(f"endpoint {self.url}: {error.code} {error.reason}") from error
                pause = max(pause, _asked_to_wait(error))
            except (URLError, OSError, HTTPException) as error:
                if last:
                    reason = getattr(error, "reason", error)
                    raise TraceError(f"endpoint {self.url}: no answer ({reason})") from error
            except ValueError as error:
                raise TraceError(f"endpoint {self.url}: its answer is no JSON") from error
            time.sleep(min(pause, LONGEST_WAIT))
        raise AssertionError("the last try returns or raises")

    def _once(self, sent: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        where = f"{self.url.rstrip('/')}/chat/completions"
        with urlopen(Request(where, sent, headers), timeout=self.timeout) as answer:
            return json.loads(answer.read())

    def _content(self, answer: Any) -> str:
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise TraceError(f"endpoint {self.url}: its answer has no message") from error
        if not isinstance(content, str):
            raise TraceError(f"endpoint {self.url}: its answer has no text")
        return content


def _asked_to_wait(error: HTTPError) -> float:
    """Seconds that the endpoint asks for; 0 where it does not say."""
    said = error.headers.get("Retry-After", "") if error.headers else ""
    return float(said) if said.isdecimal() else 0.0
