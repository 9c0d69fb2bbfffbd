# The service, and every node of a Ray cluster that it runs on: one image for all, because Ray wants the same Ray and the
# same Python on both ends of every call. From the repository's root:
#     docker build -f deploy/docker/service.Dockerfile -t gradient-sampler/service:0.1.0 .
FROM python:3.12-slim-bookworm

# Ray writes to its user's home, and a volume at /data takes its owner from here. The number is what the manifests run as.
RUN useradd --uid 1000 --create-home sampler && install --directory --owner=sampler /data

WORKDIR /opt/sampler
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY client client
COPY sampler_service sampler_service
# The versions that the tests ran with, Ray's among them.
RUN pip install --no-cache-dir --constraint constraints.txt '.[service]'

ENV PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /home/sampler
# gRPC for trainers; the page and /metrics.
EXPOSE 50051 50052
CMD ["sampler-service", "up", "--host", "0.0.0.0", "--data-dir", "/data/sets"]
