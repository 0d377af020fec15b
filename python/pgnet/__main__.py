"""``python3 -m pgnet`` is the command ``pgnet``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        # Where it was called stands first in the path: a gevent.py or psycopg.py that lies there
        # is not to run. (A pgnet.py there would have run by now; -I and -P keep that out, too.)
        here = sys.path[0]
        sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]

    from pgnet.cli.main import main

    sys.exit(main())
