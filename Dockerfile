# The proxy: a small image, no root, nothing to write but the volume.
#
#   docker build -t sessionferry .
#   docker run --read-only -v sessionferry:/var/lib/sessionferry -e SESSIONFERRY_SOURCE=… sessionferry
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY benches ./benches
COPY src ./src
# The symbols stay out of the image.
RUN CARGO_PROFILE_RELEASE_STRIP=symbols cargo build --release --locked --bin sessionferry

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin sessionferry \
 && install -d -o sessionferry -g sessionferry -m 0700 /var/lib/sessionferry
COPY --from=build /src/target/release/sessionferry /usr/local/bin/sessionferry
USER 10001
# Pending writes and the state of the move. One proxy at a time may have it.
VOLUME /var/lib/sessionferry
ENV SESSIONFERRY_DATA_DIR=/var/lib/sessionferry \
    SESSIONFERRY_LISTEN=0.0.0.0:6380
EXPOSE 6380 9380
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD ["sessionferry", "status", "--json"]
ENTRYPOINT ["sessionferry"]
CMD ["run"]
