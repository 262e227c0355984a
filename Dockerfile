# syntax=docker/dockerfile:1
# The proxy with the bundled demo model. TORCH=cpu (default) or cuda; the CUDA libraries come with torch's own wheels,
# so the same slim base serves both, and the host needs the NVIDIA container toolkit.
#   docker build -t specproxy .
#   docker build -t specproxy:cuda --build-arg TORCH=cuda .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/specproxy
ENV PATH=/opt/specproxy/bin:$PATH
WORKDIR /src
# torch first, alone: it is by far the largest layer and changes least.
COPY constraints.txt ./
RUN case "$TORCH" in \
        cpu) pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)" ;; \
        cuda) pip install -c constraints.txt "$(grep '^torch==' constraints.txt)" ;; \
        *) echo "TORCH is '$TORCH'; expected cpu or cuda" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY kernels kernels
COPY specproxy specproxy
RUN if [ "$TORCH" = cuda ]; then pip install -c constraints.txt '.[gpu]'; else pip install -c constraints.txt .; fi

FROM python:${PYTHON}-slim
# On GPUs Triton compiles a small launcher for each kernel when it first runs, on CPUs the draft model's step is compiled.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 specproxy \
    && install -d -o specproxy -g specproxy /var/lib/specproxy /var/cache/huggingface
COPY --from=build /opt/specproxy /opt/specproxy
COPY policies /etc/specproxy/policies
ENV PATH=/opt/specproxy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/cache/huggingface \
    XDG_CACHE_HOME=/var/lib/specproxy/.cache \
    SPECPROXY_HOST=0.0.0.0 \
    SPECPROXY_PORT=8000 \
    SPECPROXY_POLICIES=/etc/specproxy/policies \
    SPECPROXY_STATE=/var/lib/specproxy/specproxy.db \
    SPECPROXY_LOG_FORMAT=json
USER specproxy
WORKDIR /var/lib/specproxy
VOLUME ["/var/lib/specproxy", "/var/cache/huggingface"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Listening beyond loopback needs keys: pass SPECPROXY_API_KEYS, or the server refuses to start.
ENTRYPOINT ["specproxy"]
CMD ["serve"]
