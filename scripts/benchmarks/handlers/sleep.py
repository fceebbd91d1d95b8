"""Sleeps for each record, as if it wrote to a store: sleep.py MILLISECONDS FOLDER.

Each process notes in a file of its own in the folder when it got its first record, in seconds since 1970.
"""

import os
import sys
import time
from pathlib import Path

from dialogue import records

seconds, note = float(sys.argv[1]) / 1000, Path(sys.argv[2]) / str(os.getpid())
for number, _ in enumerate(records()):
    if number == 0:
        note.write_text(f"{time.time():.6f}")
    time.sleep(seconds)
