# A trainer: the client, torch and the examples. From the repository's root, here with torch for CPUs:
#     docker build -f deploy/docker/trainer.Dockerfile -t gradient-sampler/trainer:0.1.0 \
#         --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
# Your own trainer needs of this only `pip install '.[torch]'`.
FROM python:3.12-slim-bookworm

RUN useradd --uid 1000 --create-home trainer

WORKDIR /opt/sampler
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY client client
COPY sampler_service sampler_service
# pip reads it from the environment; left out, torch brings CUDA with it.
ARG PIP_EXTRA_INDEX_URL
# The second line is what a trainer's machine is promised: the client works, and ray and faiss are not there. Else no image.
RUN pip install --no-cache-dir --constraint constraints.txt '.[examples]' \
    && python -c "import sampler_client, importlib.util as u; found = [m for m in ('ray', 'faiss') if u.find_spec(m)]; assert not found, found"

COPY trainer_examples trainer_examples
ENV PYTHONUNBUFFERED=1
USER 1000
CMD ["python", "-m", "trainer_examples.train", "--address", "sampler:50051"]
