# One node of Rumor. Build: docker build -t rumor .
# Another base with Python 3.11+: docker build --build-arg BASE_IMAGE=… .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv /opt/rumor
# Dependencies first: Docker builds this layer again only when they change.
# Each file must have a hash that stands in requirements.txt (scripts/lock_image.py makes it).
COPY requirements.txt ./
RUN /opt/rumor/bin/pip install --no-cache-dir --require-hashes --requirement requirements.txt
COPY setup.cfg setup.py README.md LICENSE ./
COPY cluster cluster
COPY node node
# Without isolation, the setuptools that was just installed builds it, and nothing is fetched. pip stays, for images built
# FROM this one.
RUN /opt/rumor/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index . \
    && /opt/rumor/bin/pip uninstall --yes setuptools

FROM ${BASE_IMAGE}
# For scripts/partition.sh, which cuts off a node by its own firewall. docker-compose.yml sets it; production does not.
ARG WITH_IPTABLES=
RUN [ -z "$WITH_IPTABLES" ] || command -v iptables >/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends iptables && rm -rf /var/lib/apt/lists/*)
RUN groupadd --gid 10001 rumor && useradd --uid 10001 --gid rumor --create-home rumor
COPY --from=build /opt/rumor /opt/rumor
ENV PATH=/opt/rumor/bin:$PATH PYTHONUNBUFFERED=1 RUMOR_HOST=0.0.0.0
# Mount your task modules here, or build an image of your own FROM this one. RUMOR_TASKS names them.
WORKDIR /app
# A number, so that Kubernetes sees that it is not root.
USER 10001:10001
EXPOSE 5000/tcp 5000/udp
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 CMD ["python3", "-Ic", "\
import http.client, os, ssl; \
place = ('127.0.0.1', int(os.environ.get('RUMOR_PORT', '5000'))); \
tls = os.environ.get('RUMOR_TLS_CERT'); \
connection = http.client.HTTPSConnection(*place, timeout=2, context=ssl._create_unverified_context()) if tls \
    else http.client.HTTPConnection(*place, timeout=2); \
connection.request('GET', '/livez'); \
raise SystemExit(connection.getresponse().status != 200)"]
# Exec form: SIGTERM reaches the node and drains it. Start it with `docker run --init` (docs/operating.md, The image).
ENTRYPOINT ["rumor"]
CMD ["node"]
