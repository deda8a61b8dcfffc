# One image, two programs: `sickbay agent` and `sickbay controller`. Build it with `make image`.
#
# BASE is any image with Python 3.11 or newer as python3, its venv module, and CA certificates.
ARG BASE=python:3.12-slim

# hadolint ignore=DL3006
FROM ${BASE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python3 -m venv /opt/sickbay
COPY requirements/build.txt requirements/runtime.txt requirements/
# Not in the image: the asynchronous twin of the client `kubernetes` (41 MB). Byte code is compiled here, since the root
# file system is read-only where it runs, and is taken without a look at the source's time; not of the half of
# `kubernetes` that is never imported in a pod.
RUN /opt/sickbay/bin/pip install --quiet --no-compile --require-hashes -r requirements/build.txt -r requirements/runtime.txt \
    && rm -r /opt/sickbay/lib/python3.*/site-packages/kubernetes/aio \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x "/kubernetes/client/|/site-packages/(pip|setuptools)/" /opt/sickbay/lib

FROM dependencies AS build
COPY pyproject.toml README.md LICENSE sickbay.py ./
COPY health health
COPY runtime runtime
COPY exporter exporter
COPY remediation remediation
COPY simulation simulation
# What only builds does not run: neither pip nor setuptools is in the image.
RUN /opt/sickbay/bin/pip install --quiet --no-compile --no-deps --no-build-isolation . \
    && /opt/sickbay/bin/pip uninstall --quiet --yes setuptools pip \
    && python3 -m compileall -q --invalidation-mode unchecked-hash \
        -x "/site-packages/(?!(health|runtime|exporter|remediation|simulation)/|sickbay)" /opt/sickbay/lib

# hadolint ignore=DL3006
FROM ${BASE}
COPY --from=build /opt/sickbay /opt/sickbay
ENV PATH=/opt/sickbay/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# A number, so that Kubernetes can tell that it is not root. The agent runs as root: its DaemonSet says so, and why.
USER 65532:65532
ENTRYPOINT ["sickbay"]
CMD ["--help"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Sickbay" \
      org.opencontainers.image.description="The health system of accelerator nodes on Kubernetes" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
