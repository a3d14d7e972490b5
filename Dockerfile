# syntax=docker/dockerfile:1

FROM python:3.13-slim-bookworm AS builder
WORKDIR /src
# A layer of its own: dependencies change less often than the code.
COPY requirements.txt ./
# pip's cache stays in this stage, which is not shipped.
# hadolint ignore=DL3042
RUN python -m venv --without-pip /opt/gemmapy \
 && pip --python /opt/gemmapy/bin/python install --require-hashes --only-binary :all: --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY config/ config/
COPY plugins/ plugins/
COPY proxy/ proxy/
# hadolint ignore=DL3042
RUN pip --python /opt/gemmapy/bin/python install --no-deps . \
 && mkdir /data

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="GemmaPy Proxy" \
      org.opencontainers.image.description="An OpenAI-compatible reverse proxy for Ollama" \
      org.opencontainers.image.licenses="MIT"
COPY --from=builder /opt/gemmapy/ /opt/gemmapy/
COPY config/container.yaml /etc/gemmapy/proxy.yaml
# The only place where the server may write, for plugins that keep something.
COPY --from=builder --chown=10001:10001 /data/ /data/
ENV PATH=/opt/gemmapy/bin:$PATH \
    HOME=/data \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GEMMAPY_CONFIG=/etc/gemmapy/proxy.yaml \
    GEMMAPY_HOST=0.0.0.0 \
    GEMMAPY_PORT=8080
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# `http.client` heeds no http_proxy; -I keeps it from importing anything that lies in /data.
HEALTHCHECK --interval=30s --timeout=5s --start-period=15s --retries=3 \
    CMD ["python", "-I", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['GEMMAPY_PORT']), timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gemmapy-proxy"]
CMD ["serve"]
