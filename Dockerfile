# The agent on Debian's Python, and nothing else:
#
#     docker build -t ratelimit .
#     docker build -t ratelimit:development --target development .
#
# For packages from a mirror of your own, pip.conf is a secret, which no layer keeps; and so are
# certificates, if it says "cert = /run/secrets/certificates":
#
#     docker build --secret id=pip,src=pip.conf --secret id=certificates,src=ca.pem -t ratelimit .
#
# Python's packages are those of locks/, by hash. To have the same Debian again, give BASE with its
# digest.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS python
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/cache/ldconfig/* \
        /var/log/apt /var/log/*.log /usr/lib/python3*/pydoc_data /usr/lib/python3*/test


FROM python AS dependencies
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        binutils ca-certificates gcc libc6-dev python3-dev python3-venv
WORKDIR /src
COPY locks/wheels.txt locks/run.txt locks/
# The epoch is that of the files in a wheel, whose hash pip notes down.
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    SOURCE_DATE_EPOCH=1767225600
# Without build isolation, which would take tools that are in no lock. Of Pygments, with which rich
# colours code, nothing but Python is ever coloured. The byte code goes by hashes, so that it is the same
# in each build, and good for a file system that can't be written; none of what is never imported.
# Nothing reads the sources of extensions, types for a checker, and the lists of a wheel's parts.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates \
    --mount=type=cache,target=/var/cache/pip \
    python3 -m venv /build \
    && /build/bin/pip install -q --require-hashes -r locks/wheels.txt \
    && /build/bin/pip wheel -q --require-hashes --no-build-isolation -w /wheels -r locks/run.txt \
    && python3 -m venv --without-pip /opt/ratelimit \
    && /build/bin/pip --python /opt/ratelimit/bin/python install -q --no-index --no-deps --no-compile \
        /wheels/*.whl \
    && find /opt/ratelimit -name '*.so' -exec strip --strip-unneeded {} + \
    && find /opt/ratelimit \( -path '*/pygments/lexers/[a-z]*' ! -name python.py -o -name '*.py[ix]' \
        -o -path '*.dist-info/sboms/*' \) -delete \
    && python3 -m compileall -q --invalidation-mode unchecked-hash \
        -x '/(markdown_it|pydantic/v1|pygments)/' /opt/ratelimit/lib


FROM dependencies AS build
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY haproxy haproxy
COPY ratelimit ratelimit
# To a folder of its own, so that a new version is a small layer on top of the dependencies.
RUN RATELIMIT_REQUIRE_EXTENSIONS=1 \
        /build/bin/pip wheel -q --no-index --no-deps --no-build-isolation -w /wheel . \
    && /build/bin/pip --python /opt/ratelimit/bin/python install -q --no-index --no-deps \
        --no-compile --root /staged /wheel/*.whl \
    && find /staged -name '*.so' -exec strip --strip-unneeded {} + \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /staged /staged


# The tests and what they start, for work inside a container: docker run --rm IMAGE pytest ARGS
FROM build AS development
ARG SYSTEM="curl haproxy iproute2 prometheus redis-server"
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends ${SYSTEM}
COPY locks locks
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates \
    --mount=type=cache,target=/var/cache/pip \
    /build/bin/pip install -q --require-hashes --no-build-isolation -r locks/development.txt
COPY . .
ENV PATH=/build/bin:$PATH RATELIMIT_REQUIRE_EXTENSIONS=1
RUN pip install -q --no-index --no-deps --no-build-isolation -e .
CMD ["pytest", "-m", "not integration and not packaging"]


FROM python AS runtime
# The epoch is the day that /etc/shadow notes down.
RUN groupadd --gid 10001 ratelimit \
    && SOURCE_DATE_EPOCH=1767225600 useradd --uid 10001 --gid ratelimit --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin ratelimit \
    && install -d -o ratelimit -g ratelimit -m 0770 /run/ratelimit \
    && install -d -o ratelimit -g ratelimit -m 0700 /var/lib/ratelimit
COPY --from=dependencies /opt/ratelimit /opt/ratelimit
COPY --from=build /staged /
# The state is there for store.url = "memory://" alone.
ENV PATH=/opt/ratelimit/bin:$PATH STATE_DIRECTORY=/var/lib/ratelimit
USER ratelimit
WORKDIR /var/lib/ratelimit
# 9190: SPOP, 9191: the API. Both listen on loopback alone until they are told otherwise.
EXPOSE 9190 9191
# RATELIMIT_URL says where the API is, to this as to the commands.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os; from ratelimit.api.client import DEFAULT_URL, Client; Client(os.environ.get('RATELIMIT_URL', DEFAULT_URL)).get('/healthz')"]
ENTRYPOINT ["ratelimit"]
CMD ["serve"]
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="ratelimit" \
    org.opencontainers.image.description="Global rate limiter for HAProxy: the agent" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
