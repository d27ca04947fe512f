"""What goes wrong with the Hub: asked again where that may help, else one sentence."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub import constants, errors, get_token

# What the Hub's library raises; RuntimeError where it downloads through Xet.
FAILURES = (errors.HTTPError, OSError, RuntimeError)
CUT = (httpx2.ReadError, httpx2.RemoteProtocolError)  # while an answer was coming
PASSING = (408, 429, 500, 502, 503, 504)  # what the Hub answers that may pass
TRIES = 5  # times to ask again where nothing comes
MOST_TRIES = 50  # and where something does: a file may begin anew each time
PAUSE = 1.0  # seconds before the first of them; then twice as long each time
LONGEST_PAUSE = 60.0  # a Hub that asks for more is not waited for
Answer = TypeVar("Answer")


def patiently(
    ask: Callable[[], Answer],
    *,
    what: str,
    tell: Callable[[str], None],
    bytes_came: Callable[[], bool] = lambda: False,
) -> Answer:
    """What is asked for; `tell` hears why it takes longer.

    Args:
        what: its name, for the words.
        bytes_came: whether some did before the failure; tries are then counted anew.
    Raises:
        HTTPError, OSError, RuntimeError: it failed for good.
    """
    failures = tries = 0
    while True:
        try:
            return ask()
        except FAILURES as error:
            failure = root(error)
        failures = 1 if bytes_came() or isinstance(failure, CUT) else failures + 1
        tries += 1
        pause = asked_pause(failure) or PAUSE * 2 ** (failures - 1)
        if failures > TRIES or tries > MOST_TRIES or pause > LONGEST_PAUSE:
            raise failure
        if not may_pass(failure):
            raise failure
        tell(f"{what}: {reason(failure)}; going on in {pause:.0f} s")
        time.sleep(pause)


def explain(
    error: Exception, name: str, revision: str | None, token: str | None
) -> str:
    """One sentence: what went wrong with a download, and what to do."""
    page = f"https://huggingface.co/{name}"
    tokens = "https://huggingface.co/settings/tokens"
    status = getattr(getattr(error, "response", None), "status_code", None)
    here = constants.HF_HUB_CACHE
    match error:
        case errors.GatedRepoError() if token or get_token():
            return (
                f"{name} is gated, and your token is not let in: accept its licence at "
                f"{page} with the token's account, and let the token read gated "
                f"repositories ({tokens})"
            )
        case errors.GatedRepoError():
            return (
                f"{name} is gated: accept its licence at {page}, then set HF_TOKEN to "
                f"a token of that account ({tokens}), run `hf auth login` or pass "
                "token=..."
            )
        case errors.RepositoryNotFoundError():
            return (
                f"there is no folder {name!r} here and no {name} on the Hub; check the "
                "spelling, and if it is private set HF_TOKEN or pass token=..."
            )
        case errors.RevisionNotFoundError():
            return (
                f"{name} has no revision {revision!r}; {page}/tree/main lists what it "
                "has"
            )
        case errors.HfHubHTTPError() if status == 401:
            return (
                f"the Hub does not know your token: make one at {tokens} and set "
                "HF_TOKEN, or run `hf auth login`"
            )
        case errors.HfHubHTTPError() if status == 403:
            said = (error.server_message or "forbidden").splitlines()[0]
            return (
                f"the Hub does not let you read {name} ({said}): look at {page}, and "
                f"let your token read it ({tokens})"
            )
        case errors.HfHubHTTPError() if status == 429:
            pause = asked_pause(error)
            when = f"in {pause:.0f} s" if pause else "in some minutes"
            return (
                f"the Hub was asked too often from here: try {name} again {when}, with "
                "HF_TOKEN set the limit is higher; files that are whole are kept"
            )
        case errors.OfflineModeIsEnabled():
            return (
                f"there is no complete copy of {name} here and HF_HUB_OFFLINE is set; "
                "unset it to download, or pass a folder that holds the checkpoint"
            )
        case DamagedError():
            return (
                f"{error} of {name} arrived damaged, twice: try again later, and if a "
                "mirror or a proxy is between you and the Hub, without it"
            )
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return (
                f"the disk of {here} is too full for {name} ({error.strerror}): free "
                "some (`hf cache prune` removes what was broken off), or set HF_HOME "
                "to a folder on another disk; files that are whole are kept"
            )
        case _ if is_local(error):
            return (
                f"{name} cannot be kept in {here} ({error}): set HF_HOME to a folder "
                "that can be written"
            )
    return (
        f"there is no folder {name!r} here and the Hub does not answer for {name}; "
        "check the connection and try again (files that are whole are kept), or pass "
        f"a folder that holds the checkpoint ({reason(error)})"
    )


class DamagedError(RuntimeError):
    """A file arrived whole, twice, and has another hash than the Hub says."""


def may_pass(failure: Exception) -> bool:
    """Whether it may help to ask again."""
    if isinstance(failure, errors.HfHubHTTPError):
        return failure.response.status_code in PASSING
    return not (isinstance(failure, errors.OfflineModeIsEnabled) or is_local(failure))


def is_local(failure: Exception) -> bool:
    """Whether it is this machine's disk that failed, not the way to the Hub."""
    of_network = isinstance(failure, (ConnectionError, TimeoutError))
    return isinstance(failure, OSError) and bool(failure.errno) and not of_network


def root(failure: Exception) -> Exception:
    """What the library's "not found in the cache" came from."""
    while isinstance(failure, errors.LocalEntryNotFoundError) and failure.__cause__:
        failure = failure.__cause__
    return failure


def asked_pause(failure: Exception) -> float | None:
    """Seconds that the Hub asks to be left alone, if it does."""
    if not isinstance(failure, errors.HfHubHTTPError):
        return None
    headers = failure.response.headers
    asked = headers.get("Retry-After", "")
    if not asked.isdigit() and failure.response.status_code == 429:
        limit = re.search(r";\s*t=(\d+)", headers.get("RateLimit", ""))
        asked = limit[1] if limit else ""
    return float(asked) if asked.isdigit() else None


def reason(failure: Exception) -> str:
    """Why it failed, in a few words."""
    if isinstance(failure, errors.HfHubHTTPError):
        return f"the Hub answers {failure.response.status_code}"
    text = str(failure).strip() or type(failure).__name__
    return text.splitlines()[0]
