# An image that serves: `docker build -t utter .`, then `docker run --env-file … utter` (and `… utter utter migrate` first).
# Where there is no Docker, `make more` runs these steps in a clean root of Debian.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv ca-certificates && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY server /src/server
COPY sql /src/sql
RUN python3 -m venv /opt/utter && /opt/utter/bin/pip install --no-cache-dir -c /src/constraints.txt /src && rm -rf /src
RUN useradd --system --create-home --home-dir /var/lib/utter utter
USER utter
WORKDIR /var/lib/utter
ENV PATH=/opt/utter/bin:/usr/bin:/bin HOST=0.0.0.0 PORT=8000
EXPOSE 8000
CMD ["utter", "serve"]
