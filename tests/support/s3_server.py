"""moto's S3 server with conditional writes that are atomic, as in a real store.

Run as a program with moto's own arguments. moto checks `If-Match` and `If-None-Match` and then
writes, so that two of its threads may both pass the check.
"""

from __future__ import annotations

import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

_lock = threading.Lock()
_put_object = S3Response.put_object


def _put_one_at_a_time(self: S3Response) -> Any:
    with _lock:
        return _put_object(self)


if __name__ == "__main__":
    S3Response.put_object = _put_one_at_a_time  # type: ignore[method-assign]  # that is the point
    main()
