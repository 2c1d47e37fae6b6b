# Whetstone with everything it needs, for the CPU or for an NVIDIA GPU. docs/docker.md has the commands and the flags.
#   docker build -t whetstone .                              CPU
#   docker build -t whetstone:cuda --build-arg FLAVOUR=cuda .   GPU: its wheels bring CUDA, the host brings the driver
FROM python:3.11-slim-bookworm

ARG FLAVOUR=cpu
# bubblewrap isolates untrusted code; libnuma1 is for vLLM on CPU; gcc is for the kernels that Triton compiles on a GPU
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap gcc libc6-dev libnuma1 make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/whetstone
# the locks alone first: a change of the code then leaves the layer with the packages as it is
COPY requirements requirements
COPY pyproject.toml README.md Makefile ./
RUN mkdir pipeline rewards verifiers benchmarks \
    && touch pipeline/__init__.py rewards/__init__.py verifiers/__init__.py benchmarks/__init__.py \
    && python -m venv .venv \
    && .venv/bin/python requirements/install.py --flavour=${FLAVOUR} \
    && rm -rf /root/.cache
COPY . .

RUN useradd --create-home --uid 1000 whetstone && mkdir /work && chown whetstone /work
USER whetstone
ENV PATH=/opt/whetstone/.venv/bin:$PATH \
    HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 VLLM_NO_USAGE_STATS=1 TOKENIZERS_PARALLELISM=false \
    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 PYTHONPATH=/opt/whetstone
# runs/ is written below the working directory: mount a directory of the host here to keep it
WORKDIR /work
ENTRYPOINT ["whetstone"]
CMD ["--help"]
