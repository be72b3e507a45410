"""main.py on a slow disk: every write takes long enough for a kill to hit it."""

import os
import sys
import time

from main import main

SECONDS = 0.03
fsync = os.fsync


def slow_fsync(descriptor: int) -> None:
    time.sleep(SECONDS)
    fsync(descriptor)


if __name__ == "__main__":
    os.fsync = slow_fsync
    sys.exit(main())
