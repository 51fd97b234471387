# Two images from one file: `--target serve` (API, migrations, CLI; nothing but the binary) and `--target work` (with
# yt-dlp and ffmpeg; the default). Both run as uid 10001, without a shell entry point, on a read-only root file system.

ARG GO_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY migrations migrations
COPY store store
COPY jobs jobs
COPY api api
COPY cmd cmd
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/medianest ./cmd/medianest

FROM ${BASE_IMAGE} AS serve
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 medianest \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin medianest \
    && install -d -o 10001 -g 10001 /data /data/keys /media
COPY --from=build /out/medianest /usr/local/bin/medianest
ENV MEDIANEST_DATA_DIR=/data MEDIANEST_MEDIA_DIR=/media MEDIANEST_LISTEN=:8080 MEDIANEST_ADMIN_LISTEN=:9090 MEDIANEST_LOG_FORMAT=json
USER 10001:10001
EXPOSE 8080 9090
ENTRYPOINT ["medianest"]
CMD ["serve"]

FROM serve AS work
USER 0:0
COPY deploy/tools/install.sh /tmp/install.sh
# The same script as `make tools`, so that development and production find yt-dlp the same way.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ffmpeg python3 tini debian-archive-keyring \
    && cd /opt && sh /tmp/install.sh yt-dlp \
    && ln -s /opt/.tools/bin/yt-dlp /usr/local/bin/yt-dlp \
    && yt-dlp --version \
    && rm -rf /tmp/install.sh /var/lib/apt/lists/*
USER 10001:10001
# An init waits for what yt-dlp leaves of its children when it is killed; nobody else would.
ENTRYPOINT ["tini", "--", "medianest"]
CMD ["work"]
