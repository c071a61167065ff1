"""Whether the Hugging Face hub can be reached, asked once and without its clients' half minute of retries."""

import functools
import ssl
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT = 5.0


def is_local(name: str) -> bool:
    """Whether a name means a folder on this machine: it exists, or it is written like a path."""
    return Path(name).expanduser().exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1


@functools.cache
def reachable() -> bool:
    """Whether the hub (or the endpoint in HF_ENDPOINT) answers at all; never with HF_HUB_OFFLINE=1."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # someone is there: the client knows its certificates better
    except OSError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """What a library's error says first, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
