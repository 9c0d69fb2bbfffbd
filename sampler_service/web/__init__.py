"""The page, and what Prometheus scrapes: a small HTTP server beside the gateway that asks it for statistics.

              ┌─ each second, briefly ─▶ recorder ─▶ /api/runs, and the curves of /api/run/RUN
    gateway ──┤
              ├─ once for all who ask ─▶ /api/run/RUN, /api/examples/RUN, /metrics
              └─ for each who asks ────▶ /api/explain/RUN

It runs in a process of its own and talks to the service as any client does, so a fault here never reaches a trainer.
Whoever looks takes some processor time from the run's actor, but no call of a trainer waits behind one of theirs: the
gateway serves so many lookers at once, and the run answers them in threads of their own. Read-only.
"""
