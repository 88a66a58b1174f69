# What the images of Redis, HAProxy and Prometheus hold that docker-compose.yml relies on, from
# Debian's packages: the programs, and folders that belong to their users.
ARG BASE
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        haproxy prometheus redis-server redis-tools \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 999 -g 999 /data \
    && install -d -o 65534 -g 65534 /prometheus
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
