# syntax=docker/dockerfile:1
# Lacuna on the CPU: `docker build -t lacuna . && docker run -p 8080:8080 -v lacuna:/data lacuna`

FROM rust:1.95-bookworm AS build
WORKDIR /src
# Dependencies first, against an empty crate: this layer is reused until one of the files copied here changes.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src tests \
    && echo 'fn main() {}' > src/main.rs && touch src/lib.rs tests/main.rs \
    && cargo build --profile dist --locked \
    && rm -rf src tests
COPY . .
# Sources are older than the empty crate's artefacts when the checkout is; touch makes cargo look.
RUN mkdir -p tests && touch tests/main.rs src/main.rs src/lib.rs && cargo build --profile dist --locked

FROM debian:bookworm-slim
# Reward hooks over https check certificates against the system's.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin lacuna \
    && install -d -o lacuna -g lacuna /data
COPY --from=build /src/target/dist/lacuna /usr/local/bin/lacuna
COPY --from=build /src/LICENSE-MIT /src/LICENSE-APACHE /usr/share/doc/lacuna/
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
ENV LACUNA_HOST=0.0.0.0 \
    LACUNA_PORT=8080 \
    LACUNA_DATA_DIR=/data \
    LACUNA_LOG_FORMAT=json
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["lacuna", "health"]
ENTRYPOINT ["lacuna"]
CMD ["serve"]
