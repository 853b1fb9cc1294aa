"""Opens S3 buckets, and turns their errors into messages with a remedy."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ...errors import CacheError, StoreError

__all__ = ["open_bucket", "split_url", "store_errors"]

#: A request that cannot connect, or gets no answer, fails after some 20 seconds.
_CLIENT: Any = {"connect_timeout": "4s", "read_timeout": "15s", "timeout": "10min"}
_RETRY: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_DENIED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "403 Forbidden")
_SILENT = ("error sending request", "timed out")


def split_url(url: str) -> tuple[str, str]:
    """Splits ``s3://bucket/prefix`` into bucket and prefix.

    Raises:
        CacheError: it names no bucket.
    """
    match = re.fullmatch(r"s3://([^/]+)/*(.*)", url)
    if not match:
        raise CacheError(f"{url} names no bucket; write s3://bucket/prefix")
    return match[1], match[2].strip("/")


def open_bucket(bucket: str, prefix: str) -> Any:
    """Returns the ``obstore`` store of the objects under ``prefix``, without network access.

    Raises:
        CacheError: ``obstore`` is not installed, or the endpoint is plain http, which is not allowed by default.
    """
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise CacheError("Caches in object stores need obstore; install it with: pip install 'xd3d[s3]'") from error
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")
    if endpoint.startswith("http://") and not allow_http:
        raise CacheError(f"The endpoint {endpoint} is not encrypted; allow it with AWS_ALLOW_HTTP=true, or use https")
    options: Any = {**_CLIENT, "allow_http": allow_http}
    return S3Store(bucket, prefix=prefix or None, client_options=options, retry_config=_RETRY)


@contextmanager
def store_errors(location: str, bucket: str) -> Iterator[None]:
    """Turns errors of the store into ``StoreError``; missing objects and failed preconditions pass through.

    Raises:
        StoreError: the store does not answer, refuses the request, or has no such bucket.
    """
    from obstore.exceptions import BaseError, PreconditionError

    try:
        yield
    except PreconditionError:
        raise
    except (BaseError, FileNotFoundError) as error:
        text = str(error)
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
            raise
        raise StoreError(f"{location} cannot be used: {_reason(text, bucket)}") from error


def _reason(text: str, bucket: str) -> str:
    said = text.partition("\n")[0].strip()
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "Amazon's own endpoint")
    if "NoSuchBucket" in text:
        return f"there is no bucket '{bucket}' at {endpoint}; create it, or correct the name or AWS_ENDPOINT_URL"
    if "169.254.169.254" in said:
        return f"no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({said})"
    if any(word in text for word in _DENIED):
        return (
            f"{endpoint} refuses these credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN "
            f"and what they may do ({said})"
        )
    if any(word in text for word in _SILENT):
        return f"{endpoint} does not answer; check AWS_ENDPOINT_URL and the network ({said})"
    return f"{endpoint} gives unexpected answers; check AWS_ENDPOINT_URL, AWS_REGION and the network ({said})"
