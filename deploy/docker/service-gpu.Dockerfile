# As service.Dockerfile, with FAISS on the GPU and with torch for scorers. From the repository's root:
#     docker build -f deploy/docker/service-gpu.Dockerfile -t gradient-sampler/service-gpu:0.1.0 .
# No CUDA image below it: faiss-gpu and torch bring their CUDA libraries as wheels, 12 and 13, which meet in no process of
# ours. The container toolkit brings the driver, which must be one for CUDA 13: 580 or newer.
FROM python:3.12-slim-bookworm

RUN useradd --uid 1000 --create-home sampler && install --directory --owner=sampler /data

WORKDIR /opt/sampler
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY client client
COPY sampler_service sampler_service
# faiss-gpu is the same module as faiss-cpu and takes its place; constraints.txt has the version of both under the latter's name.
RUN sed 's/^faiss-cpu==/faiss-gpu==/' constraints.txt > constraints-gpu.txt \
    && pip install --no-cache-dir --constraint constraints-gpu.txt '.[service-gpu,torch]'

# Which GPUs a container sees is for those who start it: NVIDIA_VISIBLE_DEVICES=all in an image would show every pod all of
# them, whatever Kubernetes gave it.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /home/sampler
EXPOSE 50051 50052
CMD ["sampler-service", "up", "--host", "0.0.0.0", "--gpus-per-shard", "1", "--data-dir", "/data/sets"]
