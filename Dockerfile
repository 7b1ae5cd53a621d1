FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY requirements/server.lock requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/server.lock
COPY fanout fanout
COPY workers workers
COPY tasks tasks
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

RUN useradd --create-home fanout
USER fanout
WORKDIR /work
# tini is not needed: the worker is the process itself and handles SIGTERM as a warm shutdown.
ENTRYPOINT ["fanout"]
CMD ["--help"]
