"""The page, and what Prometheus scrapes: a small HTTP server beside the gateway that asks it for statistics.

              ┌─ each second, briefly ─▶ recorder ─▶ /api/runs, and the curves of /api/run/RUN
    gateway ──┤
              ├─ once for all who ask ─▶ /api/run/RUN, /api/examples/RUN, /metrics
              └─ for each who asks ────▶ /api/explain/RUN

It runs in a process of its own and talks to the service as any client does: however many people look, batches do not
wait, and a fault here never reaches a trainer. Read-only.
"""
