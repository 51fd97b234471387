# MediaNest. `make` alone says what there is.

SHELL := /bin/sh
GO ?= go
BIN := bin/medianest
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.version=$(VERSION)

# Tools that `make tools` installed for this checkout come before the system's.
export PATH := $(CURDIR)/.tools/bin:$(PATH)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what there is
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## Install what is missing: Postgres, ffmpeg, redis-server (tests), yt-dlp
	@sh deploy/tools/install.sh

.PHONY: build
build: ## Build bin/medianest
	@mkdir -p bin
	@[ -x $(BIN) ] || echo "building bin/medianest (a first build compiles everything: some minutes on a small machine)"
	@$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/medianest

.PHONY: run
run: tools build ## Start the platform on http://127.0.0.1:8080, data in ./data, media in ./media
	@$(BIN) up

.PHONY: demo
demo: tools build ## Start everything, download a few samples through the API, show the files, stop
	@$(GO) run ./cmd/medianest-demo -medianest $(BIN)

.PHONY: test
test: tools ## Run all tests, with real Postgres, Redis, yt-dlp and ffmpeg
	@$(GO) test -timeout 15m ./...

.PHONY: test-chaos
test-chaos: tools ## Kill processes at random under load and check that nothing is lost (docs/reliability.md; an hour)
	@$(GO) test -tags chaos -run TestChaos -v -timeout 6h ./cmd/medianest

# What gosec is not asked about: errors that are left (golangci-lint looks at those), conversions of numbers that are bounded
# where they are read, programs and files that settings name and nobody else (their arguments are typed and tested), and
# randomness for pauses. Left out are what only tests and the demo use. Other exceptions are in the code, with reasons.
.PHONY: gosec
gosec: ## Look for security faults
	@$(GO) run github.com/securego/gosec/v2/cmd/gosec@v2.22.10 -quiet -exclude-generated -exclude=G104,G115,G204,G304,G404 \
		-exclude-dir=jobs/ytdlp/ytdlptest -exclude-dir=store/storetest -exclude-dir=cmd/medianest-demo -exclude-dir=.tools ./...

.PHONY: check
check: tools gosec ## gofmt, go vet, gosec and the tests under the race detector
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	@$(GO) vet ./...
	@$(GO) test -race -timeout 30m ./...

.PHONY: lint
lint: ## golangci-lint, where it is installed
	@command -v golangci-lint >/dev/null || { echo "golangci-lint is not installed: https://golangci-lint.run"; exit 1; }
	@golangci-lint run

.PHONY: bench
bench: tools ## Measure this machine: ratios to bare River, latencies, streams (docs/performance.md)
	@$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m -p 1 ./jobs/queue ./api/stream
	@$(GO) test -run '^$$' -bench LimitsUtilisation -benchtime 1x -timeout 30m ./cmd/medianest
	@$(GO) test -run '^$$' -bench 'Outbox|Follow' -benchtime 1x -timeout 30m ./store
	@$(GO) test -run '^$$' -bench 'Lists|Tick|CreateDownload|InsertJob' -benchtime 200x -timeout 30m ./store

.PHONY: generate
generate: ## Make the OpenAPI document and the Go client again
	@$(GO) generate ./api/...

.PHONY: clean
clean: ## Remove what was built (never data or media)
	@rm -rf bin
