"""Runs the tunnel's process; started by longarm_edge.tunnel.Tunnel, not by hand."""

import logging
import os

# What happens is said in events. Libraries would say it once more, on the parent's terminal
logging.getLogger().addHandler(logging.NullHandler())
os.environ["GRPC_VERBOSITY"] = "NONE"

if __name__ == "__main__":
    from longarm_edge.tunnel.worker import main

    raise SystemExit(main())
