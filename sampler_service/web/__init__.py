"""The page, and what Prometheus scrapes: a small HTTP server beside the gateway that asks it for statistics.

    gateway ─ GetStatistics ─▶ recorder ─▶ /api ─▶ the page in a browser
                    └────────────────────▶ /metrics ─▶ Prometheus

It runs in a process of its own and talks to the service as any client does: however many people look, batches do not
wait, and a fault here never reaches a trainer. Read-only.
"""
