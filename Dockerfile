# syntax=docker/dockerfile:1
# The proxy with the bundled demo model, for CPUs or for NVIDIA GPUs:
#   docker build --target cpu -t specproxy:cpu .
#   docker build --target cuda -t specproxy:cuda .
# CUDA's libraries come with torch's own wheels, so one slim base serves both; a host with GPUs needs NVIDIA's container
# toolkit. tests/deploy/image_by_hand.py runs the same steps without Docker.
ARG BASE=python:3.12.13-slim-bookworm

FROM ${BASE} AS build
# Constraints by environment, as that also reaches the environment in which pip builds our wheel.
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /opt/specproxy
ENV PATH=/opt/specproxy/bin:$PATH

# torch first, alone: it is by far the largest layer and changes least.
FROM build AS build-cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url $TORCH_CPU_INDEX "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY specproxy specproxy
RUN pip install .

FROM build AS build-cuda
RUN pip install "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY specproxy specproxy
RUN pip install '.[gpu]'

FROM ${BASE} AS runtime
# A compiler, at run time: for the step of small models on CPUs, for Triton's launchers on GPUs. Both are made for the
# machine that they run on and kept in the state volume.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --home-dir /var/lib/specproxy --no-create-home --shell /usr/sbin/nologin specproxy
RUN install -d -o 10001 -g 10001 /var/lib/specproxy /var/cache/huggingface
COPY policies /etc/specproxy/policies
ENV PATH=/opt/specproxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/cache/huggingface \
    XDG_CACHE_HOME=/var/lib/specproxy/.cache \
    TRITON_CACHE_DIR=/var/lib/specproxy/.cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/specproxy/.cache/inductor \
    SPECPROXY_HOST=0.0.0.0 \
    SPECPROXY_PORT=8000 \
    SPECPROXY_POLICIES=/etc/specproxy/policies \
    SPECPROXY_STATE=/var/lib/specproxy/specproxy.db \
    SPECPROXY_LOG_FORMAT=json
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/specproxy
VOLUME ["/var/lib/specproxy", "/var/cache/huggingface"]
EXPOSE 8000 8001
# /health is 200 while a model loads, and 503 once the engine was given up; /ready says whether requests are answered.
HEALTHCHECK --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"SPECPROXY_PORT\"]}/health', timeout=4)"]
# Listening beyond loopback needs keys: pass SPECPROXY_API_KEYS, or the server refuses to start.
ENTRYPOINT ["specproxy"]
CMD ["serve"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/specproxy /opt/specproxy
ENV SPECPROXY_DEVICE=cuda NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Last, so that it is what `docker build .` makes.
FROM runtime AS cpu
COPY --from=build-cpu /opt/specproxy /opt/specproxy
ENV SPECPROXY_DEVICE=cpu
